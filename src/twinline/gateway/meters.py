"""The gateway's own measurements, cheap enough for every token, as Prometheus collectors.

Owns metric names, units and buckets. Must not know requests' fields. Each gateway has its own registry, so that several
can live in one process. The client library takes a lock per observation, which at 20,000 tokens a second is
more than the tokens themselves cost: here are plain numbers, and the library only writes them out.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from twinline.gateway.reasons import LEFT, OF_MODELS

if TYPE_CHECKING:
    from twinline.gateway.choice import Segment

PREFIX = "twinline_gateway_"
_TTFT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)


class Tally:
    """One histogram's counts for one set of labels."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Count:
    """One counter's or gauge's value for one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self.value += by

    def dec(self) -> None:
        self.value -= 1.0

    def set(self, value: float) -> None:
        self.value = value


class Counts(Collector):
    """One counter, or one gauge, by labels."""

    def __init__(
        self, family: type[CounterMetricFamily | GaugeMetricFamily], name: str, text: str, labels: Sequence[str]
    ) -> None:
        self._family, self._name, self._text, self._labels = family, name, text, labels
        self._counts: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        count = self._counts.get(values)
        if count is None:
            count = self._counts[values] = Count()
        return count

    def collect(self) -> Iterable[Metric]:
        family = self._family(self._name, self._text, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count.value)
        yield family


class Histograms(Collector):
    """One histogram, by labels."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str]) -> None:
        self._name, self._text, self._bounds, self._labels = name, text, bounds, labels
        self._tallies: dict[tuple[str, ...], Tally] = {}

    def labels(self, *values: str) -> Tally:
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally(self._bounds)
        return tally

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(repr, map(float, self._bounds)), "+Inf"]
        for values, tally in list(self._tallies.items()):
            family.add_metric(values, list(zip(names, accumulate(tally.counts), strict=True)), tally.total)
        yield family


class Meters:
    """What one gateway counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.currency = "USD"
        by_line = ["model", "line"]

        def histogram(what: str, text: str, bounds: Sequence[float], labels: Sequence[str]) -> Histograms:
            made = Histograms(PREFIX + what, text, bounds, labels)
            self.registry.register(made)
            return made

        def counter(what: str, text: str, labels: Sequence[str]) -> Counts:
            made = Counts(CounterMetricFamily, PREFIX + what, text, labels)
            self.registry.register(made)
            return made

        def gauge(what: str, text: str, labels: Sequence[str]) -> Counts:
            made = Counts(GaugeMetricFamily, PREFIX + what, text, labels)
            self.registry.register(made)
            return made

        self.requests = counter("requests", "Finished requests.", ["endpoint", "status"])
        self.running = gauge("requests_running", "Requests under way.", ["endpoint"])
        self.whole = histogram("request_seconds", "From a request's head to its answer's end.", _WHOLE, ["endpoint"])
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a choice's dispatch to a line to its first token.", _TTFT, by_line
        )
        self.between_tokens = histogram(
            "inter_token_seconds",
            "Gap between two arrivals over the tokens of the later.",
            _BETWEEN,
            by_line,
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered choices.", by_line)
        self.completion_tokens = counter("completion_tokens", "Tokens given out.", by_line)
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens that a line had in its cache.", by_line)
        self.waste_tokens = counter("refilled_tokens", "Tokens prefilled again because an answer moved there.", by_line)
        self.moves = counter("moves", "Answers that went on at this line after leaving another.", by_line)
        self.moves_from = counter(
            "moves_from", "Answers that went on elsewhere after leaving this line, by reason.", [*by_line, "reason"]
        )
        self.lost = counter(
            "attempts_lost", "Attempts that ended before the answer was whole, by reason.", [*by_line, "reason"]
        )
        self.refusals = counter("refusals", "Requests that ended with an error, by reason.", ["model", "reason"])
        self.key_refusals = counter(
            "key_refusals", "Requests refused because of their key or its limits, by reason.", ["key", "reason"]
        )
        self.trips = counter("line_trips", "Times that the line's circuit opened.", by_line)
        self.cost = counter("cost", "What answers cost, in the currency of the fleet.", [*by_line, "currency"])
        self.predicted = counter(
            "predicted_time_to_first_token_seconds",
            "Sum of the times to first token that were predicted for the answers that had one.",
            by_line,
        )
        self.queue_seconds = histogram(
            "queue_seconds", "Wait in the gateway before the first line, of answers that got a token.", _TTFT, ["model"]
        )
        self.faults = counter("line_faults", "Requests that a line failed by its own doing.", by_line)

    def key_refused(self, key: str, reason: str) -> None:
        self.key_refusals.labels(key, reason).inc()


class ModelMeter:
    """One model's measurements; labels are bound once because a lookup per token would cost more than the count."""

    def __init__(self, meters: Meters, model: str) -> None:
        self._meters = meters
        self._model = model
        self._lines: dict[str, _LineMeter] = {}
        self._queued = meters.queue_seconds.labels(model).observe
        for reason in OF_MODELS:
            meters.refusals.labels(model, reason)

    def added(self, line: str) -> None:
        """Its counters begin at 0 now: one that appears with its first count has no increase that a rate would see."""
        self._line(line)

    def _line(self, name: str) -> _LineMeter:
        meter = self._lines.get(name)
        if meter is None:
            meter = self._lines[name] = _LineMeter(self._meters, self._model, name)
        return meter

    def first_token(self, segment: Segment) -> None:
        now = time.monotonic()
        meter = self._line(segment.line.name)
        meter.first_token(now - segment.began)
        meter.predicted(segment.placement.ttft)
        self._queued(segment.queued)
        segment.first = segment.last = now

    def gap(self, segment: Segment, tokens: int) -> None:
        """A later arrival of so many tokens."""
        if tokens:
            now = time.monotonic()
            gap = now - segment.last
            self._line(segment.line.name).between_tokens(gap / tokens)
            segment.last = now
            if gap > segment.longest_gap:
                segment.longest_gap = gap

    def moved(self, line: str, before: Segment) -> None:
        """An answer goes on at `line`, after what `before` tells of another."""
        self._line(line).moves()
        self._meters.moves_from.labels(self._model, before.line.name, before.left).inc()

    def refused(self, reason: str) -> None:
        """A request of the model ends with an error."""
        self._meters.refusals.labels(self._model, reason).inc()

    def tripped(self, line: str) -> None:
        self._line(line).trips()

    def fault(self, line: str) -> None:
        self._line(line).faults()

    def ended(self, segment: Segment) -> None:
        """An attempt is over."""
        meter = self._line(segment.line.name)
        if segment.tokens or segment.prompt_tokens:
            meter.prompt_tokens(segment.prompt_tokens)
            meter.completion_tokens(segment.tokens)
            meter.cached_tokens(min(segment.cached or 0, segment.prompt_tokens))
        if segment.cost:
            meter.cost(segment.cost)
        if segment.left:
            self._meters.lost.labels(self._model, segment.line.name, segment.left).inc()
        if segment.waste:
            meter.waste_tokens(segment.waste)


class _LineMeter:
    __slots__ = (
        "between_tokens", "cached_tokens", "completion_tokens", "cost", "faults", "first_token", "moves", "predicted",
        "prompt_tokens", "trips", "waste_tokens",
    )  # fmt: skip

    def __init__(self, meters: Meters, model: str, line: str) -> None:
        self.first_token = meters.first_token.labels(model, line).observe
        self.between_tokens = meters.between_tokens.labels(model, line).observe
        self.prompt_tokens = meters.prompt_tokens.labels(model, line).inc
        self.completion_tokens = meters.completion_tokens.labels(model, line).inc
        self.cached_tokens = meters.cached_tokens.labels(model, line).inc
        self.waste_tokens = meters.waste_tokens.labels(model, line).inc
        self.moves = meters.moves.labels(model, line).inc
        self.faults = meters.faults.labels(model, line).inc
        self.predicted = meters.predicted.labels(model, line).inc
        self.cost = meters.cost.labels(model, line, meters.currency).inc
        self.trips = meters.trips.labels(model, line).inc
        for reason in LEFT:
            meters.lost.labels(model, line, reason)
            meters.moves_from.labels(model, line, reason)
