"""What a choice brings along and what it leaves behind: the claim by which it waits, and what each line did for it.

Owns the two records and the reckoning of a cost. Must not know how a choice goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from twinline.gateway.routing import Placement
from twinline.lines.line import Line


@dataclass(frozen=True, slots=True)
class Claim:
    """On whose behalf a request waits: its key, and its place among others (a higher `priority` first)."""

    key: str = ""
    priority: int = 0
    weight: float = 1.0


@dataclass(slots=True)
class Segment:
    """What one line did for the choice. `waste` are tokens prefilled again because the answer moved there."""

    line: Line
    placement: Placement
    began: float
    tokens_before: int
    waste: int = 0
    seconds: float = 0.0
    tokens: int = 0
    cached: int | None = None
    last: float = 0.0  # arrival of its latest token
    longest_gap: float = 0.0  # seconds between two arrivals
    deltas: int = 0
    cost: float = 0.0

    def close(self, made: int, prompt_tokens: int) -> None:
        """Reckons what it took when it is over: `made` tokens, after a prompt that counts here or is 0.

        The cost is the line's price for the time that the tokens took of it, at the speeds it has shown: prefill alone,
        a decode step shared by the streams in it; or its price per token. What was prefilled again costs the tenant
        nothing.
        """
        self.seconds = time.monotonic() - self.began
        self.tokens = made
        station = self.placement.station
        traits = station.traits
        fresh = max(0, prompt_tokens - (self.cached or 0))
        streams = max(1, station.decoding)
        busy = fresh * station.seconds_per_token + made * station.step.at(streams) / streams
        self.cost = busy * traits.price_per_hour / 3600
        self.cost += (prompt_tokens * traits.price_per_million_input + made * traits.price_per_million_output) / 1e6
