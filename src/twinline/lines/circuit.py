"""Whether a line may be asked: what its own faults say, and when to try it again.

Owns the count of faults and the waits. Pure, with the time handed in. Must not know requests or what a fault was. A
fault is the line's own doing: no connection, a reset, a 5xx, silence, a broken stream; never a 4xx, a 429 or a client
that left.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

IN_A_ROW = 5
WINDOW_SECONDS = 30.0
WINDOW_LEAST = 20
WINDOW_SHARE = 0.3
FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 120.0
STEADY_SECONDS = 300.0  # closed for so long, the next opening waits the first wait again


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # its time is up: a probe decides


_CLOSED = CircuitState.CLOSED  # a member takes long to look up, and every answer asks


class Circuit:
    """One line's. `reason` is why it opened last, `trips` how often it did since it was steady."""

    __slots__ = ("_closed_at", "_open_until", "_recent", "_row", "reason", "state", "trips")

    def __init__(self) -> None:
        self.state = CircuitState.CLOSED
        self.reason = ""
        self.trips = 0
        self._row = 0
        self._recent: deque[tuple[float, bool]] = deque()
        self._open_until = 0.0
        self._closed_at = 0.0

    @property
    def closed(self) -> bool:
        return self.state is CircuitState.CLOSED

    def well(self, now: float) -> None:
        """An answer came whole, or a probe."""
        self._row = 0
        if self.state is _CLOSED:
            self._note(now, True)
            if self.trips and now - self._closed_at > STEADY_SECONDS:
                self.trips = 0

    def fault(self, now: float, reason: str) -> bool:
        """Counts one; whether enough of them are there to open."""
        if self.state is not CircuitState.CLOSED:
            return False
        self._row += 1
        self._note(now, False)
        self.reason = reason
        faults = sum(not well for _, well in self._recent)
        many = len(self._recent) >= WINDOW_LEAST and faults > WINDOW_SHARE * len(self._recent)
        return self._row >= IN_A_ROW or many

    def open(self, now: float, reason: str) -> None:
        """Nothing is sent there until the wait is over, which doubles from trip to trip."""
        wait = min(FIRST_WAIT_SECONDS * 2**self.trips, LONGEST_WAIT_SECONDS)
        self.trips += 1
        self.state, self.reason, self._open_until = CircuitState.OPEN, reason, now + wait
        self._row = 0
        self._recent.clear()

    def due(self, now: float) -> bool:
        """True once when the wait is over: now a probe has to be sent."""
        if self.state is CircuitState.OPEN and now >= self._open_until:
            self.state = CircuitState.HALF_OPEN
            return True
        return False

    def close(self, now: float) -> None:
        """The probe was answered well."""
        self.state, self._closed_at = CircuitState.CLOSED, now

    def retry_after(self, now: float) -> float:
        """Seconds until it may be tried again; 0 when it may be asked."""
        return max(0.0, self._open_until - now) if self.state is CircuitState.OPEN else 0.0

    def _note(self, now: float, well: bool) -> None:
        recent = self._recent
        recent.append((now, well))
        while recent and (now - recent[0][0] > WINDOW_SECONDS or len(recent) > 1000):
            recent.popleft()
