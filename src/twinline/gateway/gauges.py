"""What is true of the models and lines at the moment somebody asks, as Prometheus gauges.

Owns their names. Must not keep anything: a line that was taken away is not told of any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from twinline.gateway.access import Access
from twinline.gateway.meters import PREFIX
from twinline.gateway.served import ServedModel
from twinline.gateway.supply import Supply
from twinline.lines.circuit import CircuitState
from twinline.lines.line import Line
from twinline.lines.state import LineState

# From a station's snapshot (routing/station.py).
LEARNT = {
    "predicted_ttft_seconds": (
        "line_predicted_time_to_first_token_seconds",
        "Predicted time to first token of a request of 512 uncached tokens sent now.",
    ),
    "predicted_tpot_seconds": (
        "line_predicted_inter_token_seconds",
        "Predicted time between tokens of one more stream.",
    ),
    "prefill_tokens_per_second": ("line_prefill_tokens_per_second", "Learnt speed of prefill."),
    "prefill_queue_tokens": ("line_prefill_queue_tokens", "Prompt tokens sent to the line and not answered yet."),
    "decoding": ("line_decoding", "Answers that have had their first token and are not over."),
    "cached_token_share": ("line_cached_ratio", "Share of the prompt tokens that the line had in its cache."),
}


def line_up(supply: Supply, line: Line) -> bool:
    """Whether it may be asked. One that has no room for the moment is up all the same."""
    return line.state.takes_requests and supply.circuits[line.name].closed


class Gauges(Collector):
    """Of `models`, as they are when it is collected."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        by_line = ["model", "line"]

        def gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
            return GaugeMetricFamily(PREFIX + name, text, labels=labels)

        queued = gauge("queued_requests", "Choices that wait in the gateway.", ["model"])
        up = gauge("line_up", "1 while the line may be asked.", by_line)
        info = gauge(
            "line_info",
            "1 for each line. simulated: no silicon computes its answers.",
            [*by_line, "engine", "chip", "simulated"],
        )
        flying = gauge("line_in_flight", "Choices under way at the line.", by_line)
        states = gauge("line_state", "1 for the state that the line is in, 0 for the others.", [*by_line, "state"])
        circuits = gauge(
            "line_circuit", "1 for the state of the line's circuit, 0 for the others.", [*by_line, "state"]
        )
        learnt = {field: gauge(name, text, by_line) for field, (name, text) in LEARNT.items()}
        for served in self._models:
            supply = served.supply
            queued.add_metric([served.name], supply.waiting)
            for name, line in supply.lines.items():
                labels = [served.name, name]
                up.add_metric(labels, line_up(supply, line))
                about = [line.spec.engine, line.spec.chip, str(line.simulated).lower()]
                info.add_metric([*labels, *about], 1)
                flying.add_metric(labels, len(line.calls))
                for state in LineState:
                    states.add_metric([*labels, str(state)], line.state is state)
                circuit = supply.circuits[name].state
                for step in CircuitState:
                    circuits.add_metric([*labels, str(step)], circuit is step)
                known = supply.router.station(name).snapshot()
                for field, family in learnt.items():
                    if known[field] is not None:
                        family.add_metric(labels, known[field])
        return [queued, up, info, flying, states, circuits, *learnt.values()]


class Unrecorded(Collector):
    """Usage that the disk has not taken: the log that would say so may be on the same disk."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def collect(self) -> Iterable[Metric]:
        waiting, lost = self._access.unrecorded
        told = "Usage records that wait in memory for a disk that takes them."
        yield GaugeMetricFamily(f"{PREFIX}usage_records_waiting", told, waiting)
        told = "Usage records that a full disk has cost."
        yield CounterMetricFamily(f"{PREFIX}usage_records_lost", told, lost)
