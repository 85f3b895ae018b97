"""The gateway's own measurements, and the lines' beside them, as Prometheus text.

Owns metric names, with their units. Must not know requests' fields. Each gateway has its own registry, so that several
can live in one process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from twinline.lines.line import Line
from twinline.lines.protocol import LineError

log = logging.getLogger(__name__)

_TTFT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)
LINE_SECONDS = 2.0  # how long a line may take to answer for its metrics
PASSED_THROUGH = "vllm:"


class ModelMeter:
    """One model's measurements; labels are bound once because a lookup per token would cost more than the count."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.first_token = metrics.first_token.labels(model).observe
        self.between_tokens = metrics.between_tokens.labels(model).observe
        self.prompt_tokens = metrics.prompt_tokens.labels(model).inc
        self.completion_tokens = metrics.completion_tokens.labels(model).inc
        self.cached_tokens = metrics.cached_tokens.labels(model).inc


class Metrics:
    """What one gateway counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "twinline_gateway_"
        model = ["model"]

        def histogram(what: str, text: str, buckets: Sequence[float], labels: Sequence[str]) -> Histogram:
            return Histogram(name + what, text, labels, buckets=buckets, registry=self.registry)

        def counter(what: str, text: str, labels: Sequence[str]) -> Counter:
            return Counter(name + what, text, labels, registry=self.registry)

        self.requests = counter("requests", "Finished requests.", ["endpoint", "status"])
        self.running = Gauge(name + "requests_running", "Requests under way.", ["endpoint"], registry=self.registry)
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a choice's dispatch to its first token.", _TTFT, model
        )
        self.between_tokens = histogram(
            "inter_token_seconds", "Gap between two arrivals, divided by the tokens of the later one.", _BETWEEN, model
        )
        self.whole = histogram(
            "request_seconds", "From the request's body to the end of its answer.", _WHOLE, ["endpoint"]
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered choices.", model)
        self.completion_tokens = counter("completion_tokens", "Tokens generated.", model)
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens that a line had in its cache.", model)
        self.line_up = Gauge(name + "line_up", "1 while the line takes requests.", ["line"], registry=self.registry)

    async def text(self, lines: Iterable[Line]) -> bytes:
        """Everything, in Prometheus' text format; a line that does not answer is left out."""
        asked = list(lines)
        for line in asked:
            self.line_up.labels(line.name).set(1 if line.state.takes_requests else 0)
        up = [line for line in asked if line.state.takes_requests]
        texts = await asyncio.gather(*map(_line_text, up))
        passed = _Passed([(line.name, text) for line, text in zip(up, texts, strict=True)])
        return generate_latest(self.registry) + generate_latest(passed)


async def _line_text(line: Line) -> str:
    try:
        async with asyncio.timeout(LINE_SECONDS):
            return await line.client.metrics_text()
    except (LineError, TimeoutError) as error:
        log.warning("no metrics from line %s: %s", line.name, error or "too slow")
        return ""


class _Passed(Collector):
    """The lines' own metrics, joined: a family may be declared only once in one text.

    Each sample gets the name of its line: two lines of a model say the same of themselves.
    """

    def __init__(self, texts: Sequence[tuple[str, str]]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for line, text in self._texts:
            try:
                for family in text_string_to_metric_families(text):
                    if not family.name.startswith(PASSED_THROUGH):
                        continue
                    joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    joined.samples += [s._replace(labels={**s.labels, "line": line}) for s in family.samples]
            except ValueError as error:
                log.warning("a line's metrics cannot be read: %s", error)
        return families.values()
