"""All there is to measure, as Prometheus text: the gateway's own, and beside it what the lines say of themselves.

Owns the join. Must not know what is counted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from twinline.gateway.gauges import Gauges, line_up
from twinline.gateway.meters import PREFIX, Meters
from twinline.gateway.served import ServedModel
from twinline.lines.client import LineClient
from twinline.lines.line import Line
from twinline.lines.protocol import LineError

log = logging.getLogger(__name__)

LINE_SECONDS = 2.0  # how long a line may take to answer for its metrics
SIBLING_SECONDS = 2.0
_PASSED_THROUGH = re.compile(r"vllm:[a-zA-Z0-9_:]+")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


async def metrics_text(meters: Meters, models: Iterable[ServedModel]) -> bytes:
    """Prometheus' text format; a line that does not answer, or has no such metrics, is left out."""
    return own_text(meters, models) + await lines_text(models)


def own_text(meters: Meters, models: Iterable[ServedModel]) -> bytes:
    """What this gateway has counted, and what is true of its lines now."""
    return generate_latest(meters.registry) + generate_latest(Gauges(models))


async def lines_text(models: Iterable[ServedModel]) -> bytes:
    """What the lines say of themselves; one that does not answer, or has no such metrics, is left out."""
    up = [
        line
        for served in models
        for line in served.supply.lines.values()
        if line_up(served.supply, line) and line.driver.metrics_path is not None
    ]
    texts = await asyncio.gather(*map(_line_text, up))
    passed = _Passed([(line.name, text) for line, text in zip(up, texts, strict=True)])
    return await asyncio.to_thread(generate_latest, passed)  # an engine's text may take long to read: streams go on


async def of_all(index: int, own: bytes, siblings: Sequence[LineClient]) -> bytes:
    """The texts of all gateways of a fleet as one, each sample with its gateway's number. What the lines say of
    themselves is every gateway's to tell, and taken from this one alone."""
    texts = await asyncio.gather(*map(_sibling_text, siblings))
    return await asyncio.to_thread(generate_latest, _Gathered([(str(index), own.decode()), *texts]))


async def _sibling_text(sibling: LineClient) -> tuple[str, str]:
    name = str(sibling.target).rpartition("gateway-")[2].removesuffix(".sock")
    try:
        status, body = await sibling.ask("GET", "/api/metrics", seconds=SIBLING_SECONDS)
    except LineError as error:
        log.warning("no metrics from gateway %s: %s", name, error)
        return name, ""
    if status != 200:
        log.warning("no metrics from gateway %s: it answers %d", name, status)
        return name, ""
    return name, body.decode("utf-8", "replace")


class _Gathered(Collector):
    """The gateways' texts, joined. The first is our own."""

    def __init__(self, texts: Sequence[tuple[str, str]]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for gateway, text in self._texts:
            for family in _families(gateway, text):
                ours = family.name.startswith(PREFIX)
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                extra = {"gateway": gateway} if ours else {}
                joined.samples += [s._replace(labels={**s.labels, **extra}) for s in family.samples]
        return families.values()


def _families(gateway: str, text: str) -> Iterable[Metric]:
    """A gateway's text is taken whole or not at all, so that its sums agree with each other."""
    try:
        return list(text_string_to_metric_families(text))
    except ValueError as error:
        log.warning("the metrics of gateway %s cannot be read: %s", gateway, error)
        return []


async def _line_text(line: Line) -> str:
    try:
        async with asyncio.timeout(LINE_SECONDS):
            return await line.client.metrics_text()
    except (LineError, TimeoutError) as error:
        log.debug("no metrics from line %s: %s", line.name, error or "too slow")
        return ""


class _Passed(Collector):
    """The lines' own metrics, joined: a family may be declared only once in one text.

    Each sample gets the name of its line: two lines of a model say the same of themselves. Names that are none are left
    out, for a line feed in one would begin a line of ours, and so is all of a sample but its labels and its value.
    """

    def __init__(self, texts: Sequence[tuple[str, str]]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for line, text in self._texts:
            try:
                for family in text_string_to_metric_families(text):
                    if not _PASSED_THROUGH.fullmatch(family.name):
                        continue
                    joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    joined.samples += [
                        Sample(s.name, {**s.labels, "line": line}, s.value)
                        for s in family.samples
                        if _PASSED_THROUGH.fullmatch(s.name) and all(map(_LABEL.fullmatch, s.labels))
                    ]
            except Exception as error:  # the parser's, too, which stumbles over some texts
                log.warning("the metrics of line %s cannot be read: %s", line, error)
        return families.values()
