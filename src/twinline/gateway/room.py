"""Lines that said they have no room, and how many requests each may be given all the same.

Owns that count. Pure, with the time handed in. Must not know requests, nor who waits. A line that refused gets one
request for each answer that ends there; when the time that it gave is over, one more is tried, then two, four: so it is
neither idle while others wait for it, nor asked over and over.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL_SECONDS, LONGEST_FULL_SECONDS = 0.5, 5.0


@dataclass(slots=True)
class _Full:
    until: float
    free: int = 0  # requests that it may be given now
    trial: int = 1  # how many are tried when the time is over


class Room:
    """Of the lines of one model, by name. A line that never refused has room."""

    def __init__(self) -> None:
        self._full: dict[str, _Full] = {}

    def __bool__(self) -> bool:
        """Whether any line has no room."""
        return bool(self._full)

    def lacks(self, name: str) -> bool:
        full = self._full.get(name)
        return full is not None and not full.free

    def refused(self, name: str, now: float, retry_after: str | None) -> None:
        """The line took one no more; `retry_after` as it said it."""
        try:
            seconds = min(float(retry_after or FULL_SECONDS), LONGEST_FULL_SECONDS)
        except ValueError:
            seconds = FULL_SECONDS
        self._full[name] = _Full(now + seconds)

    def given(self, name: str) -> bool:
        """A request goes there; True if the line lacks room now."""
        full = self._full.get(name)
        if full is None:
            return False
        full.free = max(0, full.free - 1)
        return not full.free

    def ended(self, name: str) -> bool:
        """An answer ended there; True if the line lacked room until now."""
        full = self._full.get(name)
        if full is None:
            return False
        full.free += 1
        return full.free == 1

    def forget(self, name: str) -> None:
        self._full.pop(name, None)

    def look(self, now: float, anybody: bool) -> bool:
        """Time has passed; `anybody` waits. True if a line has room again."""
        due = [name for name, full in self._full.items() if full.until <= now]
        for name in due:
            if not anybody:
                del self._full[name]
                continue
            full = self._full[name]
            full.free += full.trial
            full.trial *= 2
            full.until = now + FULL_SECONDS
        return bool(due)
