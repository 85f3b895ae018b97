"""How many connections a server may have, and which of them end when one more comes.

Owns that choice. Must not know what a connection is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

MOST_CONNECTIONS = 16_384  # at once, where the limit on open files allows it
SWEEP_SHARE = 64  # the part of all connections that is closed at once when there are too many
FULL_SECONDS = 0.25  # for how long it is believed that no connection is idle


class Guest(Protocol):
    @property
    def idle(self) -> bool:
        """No request is under way."""

    @property
    def since(self) -> float:
        """When that began (the loop's clock)."""


G = TypeVar("G", bound=Guest)


@dataclass(slots=True)
class Crowd:
    """`full_until`: until then all of them are known to be busy."""

    most: int = MOST_CONNECTIONS
    full_until: float = 0.0

    def leaving(self, guests: Iterable[G], now: float) -> list[G]:
        """Those that have waited longest without a request, some of them at once; none if all are busy."""
        if now < self.full_until:
            return []
        idle = sorted(((guest.since, id(guest), guest) for guest in guests if guest.idle), key=lambda each: each[:2])
        if not idle:
            self.full_until = now + FULL_SECONDS
        return [guest for _, _, guest in idle[: 1 + self.most // SWEEP_SHARE]]
