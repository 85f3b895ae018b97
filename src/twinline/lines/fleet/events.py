"""What happened in a fleet, for people: one entry for every change of a state or of its reason.

Owns the entries and their numbers. Knows nothing of what they tell.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

KEPT = 1000


class Event(msgspec.Struct, frozen=True):
    """One change. `at` is Unix time in seconds; `name` is a replica's or a gateway's."""

    seq: int
    at: float
    name: str
    state: str
    reason: str


class Events:
    """The last ones; each is told to `told` when it comes."""

    def __init__(self, told: Callable[[Event], None]) -> None:
        self._told = told
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._last: dict[str, tuple[str, str]] = {}

    def add(self, name: str, state: str, reason: str) -> None:
        """Nothing happens when that is what was said of `name` last."""
        if self._last.get(name) == (state, reason):
            return
        self._last[name] = (state, reason)
        seq = self._kept[-1].seq + 1 if self._kept else 1
        self._kept.append(Event(seq, time.time(), name, state, reason))
        self._told(self._kept[-1])

    def after(self, seq: int) -> list[Event]:
        return [event for event in self._kept if event.seq > seq]
