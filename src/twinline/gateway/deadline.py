"""The time that a client gives a request, over all the lines that it is put to.

Owns the clock and its timer. Must not know what is done when it is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Deadline:
    """`at`: when it is over, in monotonic seconds; None for never."""

    __slots__ = ("_timer", "at")

    def __init__(self, seconds: float | None) -> None:
        self.at = None if seconds is None else time.monotonic() + seconds
        self._timer: asyncio.TimerHandle | None = None

    @property
    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    def watch(self, late: Callable[[], None]) -> None:
        """Calls `late` when it is over, unless it is forgotten before."""
        if self.at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self.at - time.monotonic()), late)

    def forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


NEVER = Deadline(None)  # of all that have no time to keep to
