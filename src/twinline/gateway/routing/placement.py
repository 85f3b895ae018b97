"""One request on one line: what was predicted when it was chosen, and its life there.

Owns the booking of a request, in and out, exactly once. Must not know how the line was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinline.gateway.routing.policy import tier_of

if TYPE_CHECKING:
    from twinline.gateway.routing.prefix import PrefixIndex
    from twinline.gateway.routing.station import Station

MIN_PREFILL = 16.0  # tokens: a whole prompt is never cached
LEARN_TOKENS = 8  # of one stream: fewer say little of the step time
TRUSTED = 0.5


@dataclass(frozen=True, slots=True)
class Wait:
    """No line can take the request in bearable time: keep it in the gateway's queue, and ask again when a request
    has given its first token or ended. `seconds`: predicted time to first token on the least late line."""

    line: str
    tier: int
    late: float
    seconds: float


class Placement:
    """A request that was given to a line; it counts there from the moment of choice until `end` or `moved`.

    `late`: predicted time over the goal; `cached`, `prefill_tokens`: tokens; `ttft`, `chosen_at`: seconds.
    """

    __slots__ = (
        "_balance", "_bit", "_ended", "_first_at", "_held", "_index", "_keys", "_marked_at", "_marked_tokens",
        "_prefill_took", "_prompt", "_shares", "_spoilt", "cached", "chosen_at", "late", "line", "prefill_tokens",
        "station", "ttft", "waits",
    )  # fmt: skip

    def __init__(
        self, station: Station, index: PrefixIndex, keys: Sequence[int], prompt: int, held: int, late: float,
        ttft: float, now: float,
    ) -> None:  # fmt: skip
        self.station = station
        self.line = station.name
        self._held = held
        self.cached = cached = held * station.trust if held else 0.0
        self.late = late
        self.ttft = ttft
        self.chosen_at = now
        tokens = prompt - cached
        self.prefill_tokens = tokens = tokens if tokens > MIN_PREFILL else MIN_PREFILL
        self.waits = True
        self._ended = self._spoilt = False
        self._index, self._keys, self._bit, self._prompt = index, keys, station.bit, prompt
        station.sent(self, now)
        self._balance = self._shares = self._first_at = self._marked_at = 0.0
        self._marked_tokens = 1
        self._prefill_took: float | None = None
        if keys:
            index.put(keys, station.bit)

    @property
    def tier(self) -> int:
        """0: well in time, to 4: more than ten times the goal."""
        return tier_of(self.late)

    def first_token(self) -> None:
        """The first token came."""
        if not self.waits or self._ended:
            return
        station = self.station
        now = station.clock()
        self.waits = False
        self._first_at = self._marked_at = now
        took = station.answered(self, now)
        if self._spoilt or station.stood_still(now):
            self._spoilt = True
        elif self._held:
            self._prefill_took = took  # how much was cached is known at the end
        else:
            station.learn_prefill(self.prefill_tokens, took, now)
        station.derive()
        self._balance, self._shares = station.balance(now), station.shares(now)

    @property
    def company(self) -> float:
        """How many streams shared the line's steps since its first token, itself among them: the harmonic mean over
        time, so that shares of all add up to the line. Until it ends."""
        now = self.station.clock()
        share = self.station.shares(now) - self._shares
        if self.waits or share <= 0.0:
            return max(1, self.station.decoding)
        return max(1.0, (now - self._first_at) / share)

    def progress(self, tokens: int) -> None:
        """So many tokens have come in all. Not needed; for long streams, about once a second, so that the line's step
        time is learnt before they end."""
        if not self.waits and not self._ended:
            self._learn_step(tokens, self.station.clock())
            self.station.derive()

    def end(
        self,
        output_tokens: int = 0,
        cached_tokens: int | None = None,
        ok: bool = True,
        fault: bool = False,
        keys: Sequence[int] = (),
    ) -> None:
        """The request is over here. Only the first `end` or `moved` counts.

        cached_tokens: as the line reported, or None. ok: it finished as it should. fault: it did not, and that is
        the line's own doing (not a refusal of this request, not a client that left). keys: of prompt and output, if
        the caller has them: the line holds those blocks too.
        """
        if self._ended:
            return
        station = self.station
        now = station.clock()
        self._ended = True
        if self._prefill_took is not None:
            computed = self.prefill_tokens if cached_tokens is None else self._prompt - cached_tokens
            station.learn_prefill(computed if computed > MIN_PREFILL else MIN_PREFILL, self._prefill_took, now)
        if self.waits:
            self.waits = False
            station.withdrawn(self, now)
        else:
            if not fault:
                self._learn_step(output_tokens, now)
            station.ended(now)
        if ok and output_tokens:
            station.learn_output(output_tokens)
        if fault:
            station.fault(now)
        if cached_tokens is not None and self._prompt:
            held = self._held
            station.learn_cached(held, cached_tokens, self._prompt)
            # What was missing has been computed since, so the line has it now; unless it seldom keeps anything.
            if station.trust < TRUSTED and cached_tokens < 0.5 * held:
                self._index.correct(self._keys, self._bit, cached_tokens)
        if keys and ok:
            self._index.put(keys, self._bit)

    def spoil(self) -> None:
        """We stood still meanwhile: its times tell nothing of the line."""
        self._spoilt = True

    def moved(self, output_tokens: int = 0) -> None:
        """The stream goes on elsewhere, and not because the line broke: a drain."""
        self.end(output_tokens, ok=False)

    def _learn_step(self, tokens: int, now: float) -> None:
        made = tokens - self._marked_tokens
        span = now - self._marked_at
        if made < LEARN_TOKENS or span <= 0.0:
            return
        station = self.station
        if self._spoilt or station.stood_still(now):
            self._spoilt = True
            return
        balance = station.balance(now)
        station.learn_step((balance - self._balance) / span, span / made, now)
        self._balance = balance
        self._marked_at, self._marked_tokens = now, tokens
