"""The failures of one replica, and what they call for: a delay, or quarantine and for how long.

Owns the counting. Pure but for the clock, which is given. Must not know how a failure is seen.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from twinline.lines.fleet.pace import Pace


class Failures:
    """Use: `add` each one, then ask. A replica in quarantine is let out by `half_open`, or for good by `forget`."""

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace, self._clock = pace, clock
        self._at: deque[float] = deque(maxlen=max(pace.failures, 16))
        self.cool_down = pace.cool_down

    def add(self) -> None:
        self._at.append(self._clock())

    @property
    def recent(self) -> int:
        now = self._clock()
        return sum(now - at < self._pace.window for at in self._at)

    @property
    def too_many(self) -> bool:
        """Whether the replica belongs into quarantine."""
        return self.recent >= self._pace.failures

    @property
    def just_now(self) -> bool:
        """Whether what is reported now is likely the failure that was counted last: one death breaks many streams."""
        return bool(self._at) and self._clock() - self._at[-1] < self._pace.same_failure

    @property
    def delay(self) -> float:
        """Seconds before the next start: doubled from failure to failure."""
        return min(self._pace.first_delay * 2.0 ** max(self.recent - 1, 0), self._pace.longest_delay)

    def half_open(self) -> None:
        """One more failure brings it back into quarantine, for twice as long."""
        self.cool_down = min(self.cool_down * 2, self._pace.longest_cool_down)
        now = self._clock()
        self._at = deque([now] * (self._pace.failures - 1), maxlen=self._at.maxlen)

    def forget(self) -> None:
        self._at.clear()
        self.cool_down = self._pace.cool_down
