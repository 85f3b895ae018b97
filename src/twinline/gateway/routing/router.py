"""Chooses a line for each request, by what its own answers have taught of every line.

Owns the lines' books, the prefix index and the rule of choice (gateways.md 8.2). Pure: no I/O, no event loop, time from
the clock it is given, chance from its seed; so a simulator can drive it. Must not know how a line is reached, or
whether it is healthy: the caller names the lines that may be asked now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Literal, overload

from twinline.gateway.routing.ask import NOTHING, Ask, Traits
from twinline.gateway.routing.placement import MIN_PREFILL, Placement, Wait
from twinline.gateway.routing.policy import SATURATED, TIERS, Policy, tier_of
from twinline.gateway.routing.prefix import PrefixIndex
from twinline.gateway.routing.station import Station

REFRESH_SECONDS = 0.25
STALE_SECONDS = 60.0  # without an answer: a line may have changed since
KNOWN_ANSWERS = 16
EXPLORE_UNKNOWN = 0.1  # share of requests for lines that are not known yet
SATURATED_LATE = TIERS[SATURATED - 1]
LOADED = 2.0  # lines that are late by themselves take requests until they are so many times as late as the best alone
# Seconds of a client's waiting when a stream must be moved: finding out, then prefill again (gateways.md 7.4).
DETECTION_SECONDS = 1.5
FREE_PRICE = 0.01  # of the mean price: what a free line is taken to cost, so that its work still counts
# When no line is well in time, one that holds most of the prompt counts as so much less late: near capacity every miss
# is work for all. gateways.md 8.2 halves, and only when no line is within 1.5 of the goal; by benchmarks/routing at
# load 1.0 the goals were then met for 52 % (fleet A) and 71 % (B) of the requests, with this for 78 % and 90 %.
HOLDER = 0.15
HOLDER_LATE = 8.0  # beyond, no prefix is worth the queue

CHEAPEST, FASTEST, PREFER, WEIGHTED = range(4)
# Place in the list of lines, tokens that it holds, its lateness and seconds to the first token, the least lateness.
Found = tuple[int, int, float, float, float]
_RULES = {"cheapest": CHEAPEST, "fastest": FASTEST, "prefer": PREFER, "weighted": WEIGHTED}


def _declines(*_: Any) -> Found | None:
    return None


best_compiled: Callable[..., Found | None] = _declines
with contextlib.suppress(ImportError):
    from twinline.gateway.routing._placement import best as best_compiled
    from twinline.gateway.routing._placement import bind

    bind(Station, MIN_PREFILL, DETECTION_SECONDS, HOLDER, HOLDER_LATE)


class Router:
    """The lines of one model. Not thread-safe; one per process and model."""

    def __init__(
        self, policy: Policy, clock: Callable[[], float], seed: int = 0, prefix_capacity: int = 100_000
    ) -> None:
        self.index = PrefixIndex(prefix_capacity)
        self._clock = clock
        self._random = Random(seed).random
        self._stations: dict[str, Station] = {}
        self._began: float | None = None
        self._refresh_at = float("-inf")
        self._unheard: list[Station] = []
        self._among: tuple[str, ...] | None = None
        self._needs: frozenset[str] = NOTHING
        self._lines: list[Station] = []
        self._least_context = 0
        self._mean_price = 1.0
        self._last_ramp = float("-inf")
        self.follow(policy)

    def follow(self, policy: Policy) -> None:
        """Another policy from now on; what was learnt stays."""
        self.policy = policy
        self._rule = _RULES[policy.rule]
        self._reorder()

    # Lines.

    def add(self, traits: Traits) -> Station:
        """A new line. Raises ValueError if there is one of that name."""
        name = traits.name
        if name in self._stations:
            raise ValueError(f"line {name} is already there; remove it first, or update its traits")
        station = self._stations[name] = Station(traits, self._clock)
        self._take_bits(name)
        now = self._clock()
        if self._began is None:
            self._began = now
        self._ramp(station, now)
        self._reorder()
        return station

    def remove(self, name: str) -> None:
        """Streams that are still on it end as usual. A name that is not there is no error."""
        if self._stations.pop(name, None):
            self.index.forget(name)
            self._reorder()

    def update(self, traits: Traits) -> None:
        """Raises KeyError if there is no such line."""
        self._stations[traits.name].declare(traits)
        self._reorder()

    def station(self, name: str) -> Station:
        """Raises KeyError if there is no such line."""
        return self._stations[name]

    def stations(self) -> Iterable[Station]:
        return self._stations.values()

    def healed(self, name: str, restarted: bool = True) -> None:
        """A line may be asked again after a time out of service: it comes up slowly; restarted: its cache is empty."""
        station = self._stations[name]
        if restarted:
            self.forget(name)
        self._ramp(station, self._clock())

    def forget(self, name: str) -> None:
        """The line's cache is empty: it restarted."""
        self.index.forget(name)
        self._take_bits(name)

    def _take_bits(self, name: str) -> None:
        """The line gets a new bit in the index; after hundreds of those, all get others."""
        self.index.bit(name)
        for station in self._stations.values():
            station.bit = self.index.bit(station.name)

    # The choice.

    @overload
    def choose(self, ask: Ask, among: Iterable[str], may_wait: Literal[False] = False) -> Placement | None: ...

    @overload
    def choose(self, ask: Ask, among: Iterable[str], may_wait: bool) -> Placement | Wait | None: ...

    def choose(self, ask: Ask, among: Iterable[str], may_wait: bool = False) -> Placement | Wait | None:
        """A line for the request among those that may be asked now: healthy, not tried yet. It is booked there at once.
        Pass the same tuple as long as it holds: the look-up is then saved.

        None: none of them can take it (features, context), whatever the load. Wait, only where may_wait: every one is
        so late that the request had better wait in the gateway; nothing is booked.
        """
        now = self._clock()
        if now >= self._refresh_at:
            self._refresh(now)
        if among is self._among and ask.needs == self._needs:
            lines = self._lines
        else:
            lines = self._able(among, ask.needs)
        if ask.context > self._least_context:
            lines = [station for station in lines if ask.context <= station.context]
        if not lines:
            return None
        held = self.index.held(ask.keys)
        if self._unheard:
            placed = self._explore(ask, lines, held, now)
            if placed is not None:
                return placed
        if self._rule == WEIGHTED and not ask.named:
            return self._weighted(ask, lines, held, now, may_wait)
        if now < self._last_ramp and len(lines) > 1:
            ramp = self.policy.ramp_seconds
            lines = [s for s in lines if s.ramp_until <= now or self._random() > (s.ramp_until - now) / ramp] or lines
        return self._best(ask, lines, held, now, may_wait)

    def _able(self, among: Iterable[str], needs: frozenset[str]) -> list[Station]:
        """Kept for the next request if `among` is a tuple: the same one again needs no look-up."""
        stations = self._stations
        able = [stations[name] for name in among if name in stations and needs <= stations[name].features]
        self._among, self._needs, self._lines = (among if isinstance(among, tuple) else None), needs, able
        self._least_context = min((station.context for station in able), default=0)
        return able

    def _best(
        self, ask: Ask, lines: list[Station], held: list[tuple[int, int]], now: float, may_wait: bool
    ) -> Placement | Wait | None:
        policy = self.policy
        sticky = self._rule == CHEAPEST and policy.sticky
        per_ttft = 1.0 / policy.ttft_seconds
        found = best_compiled(
            lines, held, ask.prompt_tokens, ask.output_tokens, ask.movable, sticky, per_ttft, now, self._rule,
            self._mean_price,
        )  # fmt: skip
        at, has, late, ttft, least_late = found or self._best_of(ask, lines, held, now, sticky, per_ttft)
        best = lines[at]
        if may_wait and least_late > SATURATED_LATE:
            free = self._not_worth_waiting_for(ask, lines, held)
            if free:
                return self._best(ask, free, held, now, may_wait=False)
            return Wait(best.name, tier_of(least_late), least_late, least_late * policy.ttft_seconds)
        return Placement(best, self.index, ask.keys, ask.prompt_tokens, has, late, ttft, now)

    def _best_of(
        self, ask: Ask, lines: Sequence[Station], held: list[tuple[int, int]], now: float, sticky: bool, per_ttft: float
    ) -> Found:
        """The rule. csrc/placement.cpp is the same, to the last bit."""
        rule = self._rule
        prompt, output, movable = ask.prompt_tokens, ask.output_tokens, ask.movable
        holders: list[tuple[float, float, float, int, int]] = []
        best = -1
        best_tier, best_score = 9, 0.0
        best_late = best_ttft = 0.0
        best_held = 0
        least_late = 1e300
        tokens: float = prompt
        has = 0
        holds = False
        for at, station in enumerate(lines):
            if held:
                tokens, has, holds = prompt, 0, False
                bit = station.bit
                for reach, bits in held:
                    if bits & bit:
                        has = reach
                        tokens = prompt - has * station.trust
                        if tokens < MIN_PREFILL:
                            tokens = MIN_PREFILL
                        holds = has + has > prompt
                        break
            ttft = station.base + tokens * station.seconds_per_token
            if station.head_seconds:
                done = now - station.head_at
                ttft -= done if done < station.head_seconds else station.head_seconds
            late = ttft * per_ttft
            if station.late_step > late:
                late = station.late_step
            if late < least_late:
                least_late = late
            tier = 0 if late <= 0.6 else 1 if late <= 1.5 else 2 if late <= 4.0 else 3 if late <= 10.0 else 4
            if rule == CHEAPEST:
                if tier > best_tier and not holds:
                    continue
                score = tokens * station.prefill_work + output * station.decode_work
                if station.risky or not movable:
                    score += self._mean_price * self._risk(ask, station, ttft)
            elif rule == FASTEST:
                tier = 0
                score = ttft + output * station.step_cost + tokens * station.prefill_delay
                if station.risky or not movable:
                    score += self._risk(ask, station, ttft)
            else:
                tier = tier - 1 if tier else 0
                score = station.rank
            if holds and sticky:
                holders.append((late, score, ttft, has, at))
            if tier < best_tier or (tier == best_tier and score < best_score):
                best, best_tier, best_score = at, tier, score
                best_late, best_ttft, best_held = late, ttft, has
        if holders and best_tier > 0:
            for late, score, ttft, has, at in holders:
                if late > HOLDER_LATE:
                    continue
                tier = tier_of(HOLDER * late)
                if tier < best_tier or (tier == best_tier and score < best_score):
                    best, best_tier, best_score = at, tier, score
                    best_late, best_ttft, best_held = late, ttft, has
        return best, best_held, best_late, best_ttft, least_late

    def _weighted(
        self, ask: Ask, lines: Sequence[Station], held: list[tuple[int, int]], now: float, may_wait: bool
    ) -> Placement | Wait | None:
        """Smooth weighted round robin: each line gains its weight, the richest is chosen and pays them all."""
        lines = [station for station in lines if station.weight > 0]
        if not lines:
            return None
        for station in lines:
            station.credit += station.weight
        best = max(lines, key=_credit)
        has, late, ttft = self._predict(ask, best, held)
        if may_wait and late > SATURATED_LATE:
            for station in lines:  # one that is passed over is not owed its turn: it would get hundreds at once later
                station.credit -= station.weight
            free = [station for station in lines if self._predict(ask, station, held)[1] <= SATURATED_LATE]
            free = free or self._not_worth_waiting_for(ask, lines, held)
            if free:
                return self._weighted(ask, free, held, now, may_wait=False)
            return Wait(best.name, tier_of(late), late, ttft)
        best.credit -= sum(station.weight for station in lines)
        return Placement(best, self.index, ask.keys, ask.prompt_tokens, has, late, ttft, now)

    def _not_worth_waiting_for(self, ask: Ask, lines: Sequence[Station], held: list[tuple[int, int]]) -> list[Station]:
        """Of lines that are all very late: those that are not much later than the best of them would be with nothing
        else to do. None of them where waiting helps, because with less to do a line would be in time."""
        limit = LOADED * min(self._alone(ask, station, held) for station in lines)
        if limit <= SATURATED_LATE:
            return []
        return [station for station in lines if self._predict(ask, station, held)[1] <= limit]

    def _alone(self, ask: Ask, station: Station, held: list[tuple[int, int]]) -> float:
        """The lateness of the request on this line if it had nothing else to do."""
        has = next((tokens for tokens, bits in held if bits & station.bit), 0)
        tokens = max(MIN_PREFILL, ask.prompt_tokens - has * station.trust)
        return max(station.prefill.at(tokens) / self.policy.ttft_seconds, station.late_at(station.step.at(1)))

    def _explore(self, ask: Ask, lines: Sequence[Station], held: list[tuple[int, int]], now: float) -> Placement | None:
        """Now and then a request for a line that is not known, or was not heard of lately, unless it would be very
        late there."""
        chance = self._random()
        if chance >= EXPLORE_UNKNOWN or self._rule in (WEIGHTED, PREFER) or not ask.movable:
            return None
        for station in self._unheard:
            unknown = station.prefill.seen < KNOWN_ANSWERS
            if chance < (EXPLORE_UNKNOWN if unknown else self.policy.explore) and station in lines:
                has, late, ttft = self._predict(ask, station, held)
                if late <= SATURATED_LATE and not station.waiting:
                    self._unheard.remove(station)
                    return Placement(station, self.index, ask.keys, ask.prompt_tokens, has, late, ttft, now)
        return None

    def _predict(self, ask: Ask, station: Station, held: list[tuple[int, int]]) -> tuple[int, float, float]:
        """Tokens held, lateness, seconds to the first token."""
        has = next((tokens for tokens, bits in held if bits & station.bit), 0)
        ttft = station.ttft(max(MIN_PREFILL, ask.prompt_tokens - has * station.trust))
        return has, max(ttft / self.policy.ttft_seconds, station.late_step), ttft

    def _risk(self, ask: Ask, station: Station, ttft: float) -> float:
        """Expected seconds lost by the line's death under the request: the whole request, or a move."""
        lasts = ttft + ask.output_tokens * station.tpot
        lost = DETECTION_SECONDS + ask.prompt_tokens * station.seconds_per_token if ask.movable else lasts
        return station.hazard * lasts * lost

    # What changes seldom.

    def _ramp(self, station: Station, now: float) -> None:
        """The lines a gateway starts with have nobody to lean on and take their share at once."""
        seconds = self.policy.ramp_seconds
        assert self._began is not None
        station.ramp_until = now + seconds if now - self._began > seconds else now
        self._last_ramp = max((s.ramp_until for s in self._stations.values()), default=now)

    def _reorder(self) -> None:
        self._among = None
        policy = self.policy
        ranks = {name: rank for rank, name in enumerate(policy.order)}
        stations = self._stations.values()
        paid = [s.traits.price_per_hour / 3600 for s in stations if s.traits.price_per_hour > 0]
        self._mean_price = mean = sum(paid) / len(paid) if paid else 1.0
        for number, station in enumerate(stations):
            station.rank = ranks.get(station.traits.name, len(ranks) + number)
            station.weight = policy.weights.get(station.traits.name, station.traits.weight)
            price = station.traits.price_per_hour / 3600
            if not price:
                by_token = station.input_price or station.output_price
                price = 0.0 if by_token else FREE_PRICE * mean if paid else 1.0
            station.price = price
            station.step_goal = policy.inter_token_seconds
        self._refresh_at = float("-inf")

    def _refresh(self, now: float) -> None:
        self._refresh_at = now + REFRESH_SECONDS
        unheard = []
        for station in self._stations.values():
            station.refresh(now)
            if now - station.heard > STALE_SECONDS or station.prefill.seen < KNOWN_ANSWERS:
                unheard.append((station.heard, station.rank, station))
        self._unheard = [station for *_, station in sorted(unheard, key=lambda entry: entry[:2])]


def _credit(station: Station) -> float:
    return station.credit
