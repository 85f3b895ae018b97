"""A token bucket: how many tokens of prefill may be started per second after many streams broke at once.

Owns the level. Must not know requests. Pure: time from the clock it is given.
"""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """`rate` tokens per second, at most `burst` saved up. A request of more than the burst waits for a full bucket and
    leaves it in debt, so that it is served too and still paid for. Raises ValueError unless both are above 0."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        if not rate > 0 or not burst > 0:
            raise ValueError(
                f"a budget of {rate} tokens/s with a burst of {burst} lets nothing through; both must be above 0"
            )
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._level, self._at = burst, clock()

    def wait(self, tokens: float) -> float:
        """Seconds until so many tokens may be taken; 0: now."""
        now = self._clock()
        self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        return max(0.0, (min(tokens, self.burst) - self._level) / self.rate)

    def take(self, tokens: float) -> bool:
        """Takes them, if they may be taken now."""
        if self.wait(tokens) > 1e-9:
            return False
        self._level -= tokens
        return True
