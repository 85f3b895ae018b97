"""One call as it is read: the contract between a format's syntax and the parser that finds calls in a text.

Owns the contract alone.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

LONGEST_HEAD = 256  # characters before the arguments: what is longer is no call


class Reading(Enum):
    """How far a call is."""

    OPEN = auto()
    DONE = auto()
    FAILED = auto()


class Call(Protocol):
    """A call behind its opening mark. `name` is None until it is certain: a function of the request, and arguments.

    It cannot fail from then on: what came of the arguments is the client's. `arguments` is what came since it was last
    taken, `rest` what is behind the call, or behind the place where it failed.
    """

    name: str | None
    arguments: str
    rest: str

    def push(self, text: str) -> Reading:
        """Nothing may be pushed after DONE or FAILED."""

    def finish(self) -> str:
        """Arguments that were held back for a mark that did not come."""
