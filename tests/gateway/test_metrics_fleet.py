"""The metrics of a whole fleet: several real gateways as one text that keeps every rule of its format."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.processes import MODEL, Doubles, Fleet, Gateway, entry, fleet, until
from tests.lines.line_double import Script

from twinline.lines.state import LineState
from twinline.store.database import Database
from twinline.store.keys import Keys

PREFIX = "twinline_gateway_"
TOKENS = list(range(10, 22))
UNITS = ("seconds", "tokens", "bytes", "total", "ratio", "requests", "per_second", "fds", "info")
UNITLESS = {
    "line_up",
    "line_in_flight",
    "line_state",
    "line_circuit",
    "usage_records_waiting",
    "line_decoding",
    "requests_running",
}  # counts, 0/1


@dataclass
class Place:
    fleet: Fleet
    doubles: Doubles
    gateways: list[Gateway]
    key: str

    def ask(self, gateway: int, count: int, **fields: object) -> list[int]:
        """So many requests to one gateway alone, which its Unix socket is the only way to choose."""
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.gateways[gateway].socket)), timeout=20, headers=headers
        ) as client:
            return [
                client.post(
                    "http://gateway/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields}
                ).status_code
                for _ in range(count)
            ]

    def text(self) -> str:
        """A gateway or a line that a busy machine keeps from answering in time is left out: then it is asked again."""
        return until(self._whole)

    def _whole(self) -> str | None:
        with self.fleet.client() as client:
            answer = client.get("/metrics")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = answer.text
        gateways = all(f'gateway="{number}"' in text for number in ("0", "1"))
        lines = all(total(text, "vllm:generation_tokens_total", line=line) for line in ("first", "second"))
        return text if gateways and lines else None

    def total(self, name: str, **labels: str) -> float:
        return total(self.text(), name, **labels)


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of that name which have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture(scope="module")
def place(tiny_folder: Path) -> Iterator[Place]:
    with Doubles(3) as doubles, fleet(tiny_folder, keys="required", workers=2, currency="CNY") as made:
        database = Database(f"sqlite:///{made.directory / 'twinline.db'}")
        store = Keys(database)
        key = store.create("alice")[1]
        store.create("slow", requests_per_minute=1)
        database.close()
        made.entries = [
            entry("first", doubles.urls[0], price_per_hour=36.0),
            entry("second", doubles.urls[1]),
            entry("out", doubles.urls[2], state=LineState.QUARANTINED, reason="it failed three times"),
        ]
        made.write()
        yield Place(made, doubles, [made.start(0), made.start(1)], key)


@pytest.fixture(autouse=True)
def _plain(place: Place) -> None:
    for double in place.doubles.lines:
        double.script = lambda request: Script(TOKENS, per_chunk=3)


def lint(text: str) -> list[str]:
    """What promtool would hold against a text, and more: the rules of the format and of naming."""
    faults = []
    families: list[Metric] = list(text_string_to_metric_families(text))
    declared = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    faults += [
        f"{name} is declared {count} times" for name, count in Counter(n for n, _ in declared).items() if count > 1
    ]
    faults += [f"{name} has no help" for name, _ in declared
               if name.startswith(PREFIX) and not re.search(rf"^# HELP {re.escape(name)} \S", text, re.M)]  # fmt: skip
    ended: set[str] = set()
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            ended.add(current)
            current = line.split()[2]
        elif line and not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            if re.sub(r"_(bucket|sum|count)$", "", name) != current and name != current:
                faults.append(f"{name} stands under {current}")
            if current in ended:
                faults.append(f"{current} is not in one piece")
    seen = Counter((s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples)
    faults += [f"{sample} comes twice" for sample, count in seen.items() if count > 1]
    for name, kind in declared:
        if not name.startswith(PREFIX):
            continue
        short = name.removeprefix(PREFIX)
        if (kind == "counter") != name.endswith("_total"):
            faults.append(f"{name} is a {kind}")
        if short not in UNITLESS and not any(unit in short for unit in UNITS):
            faults.append(f"{name} has no unit")
        if re.search(r"_(ms|milliseconds|minutes|hours|percent|gauge|counter|histogram)(_|$)", short):
            faults.append(f"{name} is not in a base unit, or names its type")
    for family in families:
        if family.type == "histogram":
            faults += histogram_faults(family)
    return faults


def histogram_faults(family: Metric) -> list[str]:
    faults = []
    rows: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts = {}
    for sample in family.samples:
        labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
        if sample.name.endswith("_bucket"):
            rows.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[labels] = sample.value
    for labels, row in rows.items():
        if row != sorted(row) or [v for _, v in row] != sorted(v for _, v in row):
            faults.append(f"{family.name}{labels} does not grow")
        if row[-1] != (float("inf"), counts[labels]):
            faults.append(f"{family.name}{labels} has a count that is not its last bucket")
    return faults


def test_the_text_keeps_every_rule(place: Place) -> None:
    place.ask(0, 2)
    place.ask(1, 2, temperature=-1)
    text = place.text()
    assert lint(text) == []
    assert "vllm:num_requests_running" in text
    # the linter is not blind
    assert lint(text + "# TYPE twinline_gateway_moves_total counter\n")
    assert lint(text + "# HELP twinline_gateway_x_ms A.\n# TYPE twinline_gateway_x_ms gauge\ntwinline_gateway_x_ms 1\n")


def test_counts_of_both_gateways_stand_beside_each_other(place: Place) -> None:
    name = f"{PREFIX}completion_tokens_total"
    before = [place.total(name, gateway=gateway) for gateway in ("0", "1")]
    assert place.ask(0, 3) == [200] * 3 and place.ask(1, 5) == [200] * 5
    after = [place.total(name, gateway=gateway) for gateway in ("0", "1")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3 * len(TOKENS), 5 * len(TOKENS)]
    for _ in range(4):  # whichever of the two is asked
        assert place.total(name) == sum(after)
    # What a line says of itself is its own, not each gateway's: told once.
    assert place.total("vllm:generation_tokens_total", line="first") == 7
    assert place.total("vllm:generation_tokens_total") == 14


def test_lines_are_told_as_they_are(place: Place) -> None:
    text = place.text()
    state, up = f"{PREFIX}line_state", f"{PREFIX}line_up"
    assert total(text, state, line="out", state="quarantined") == 2 == total(text, state, line="first", state="serving")
    assert total(text, state, line="out") == 2  # one state a gateway
    assert (total(text, up, line="first"), total(text, up, line="out")) == (2, 0)
    assert total(text, f"{PREFIX}line_circuit", line="first", state="closed") == 2
    assert total(text, f"{PREFIX}line_predicted_time_to_first_token_seconds", line="first", gateway="0") > 0
    place.fleet.entries.append(entry("fresh", place.doubles.urls[2]))
    place.fleet.followed()
    assert place.total(up, line="fresh") == 2
    place.fleet.entries.pop()
    place.fleet.followed()
    told = [(f, s) for f in text_string_to_metric_families(place.text()) for s in f.samples]
    left = [(f.type, s.value) for f, s in told if s.labels.get("line") == "fresh"]
    assert left and all(kind != "gauge" and not value for kind, value in left)  # what it is; not what it counted


def test_what_was_predicted_observed_and_paid(place: Place) -> None:
    names = ("predicted_time_to_first_token_seconds_total", "time_to_first_token_seconds_count", "cost_total",
             "queue_seconds_count")  # fmt: skip
    before = [place.total(PREFIX + name) for name in names]
    place.ask(0, 10)
    after = [place.total(PREFIX + name) for name in names]
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert grown[0] > 0 and grown[1] == 10 and grown[3] == 10
    assert place.total(f"{PREFIX}cost_total", currency="CNY", line="first") > 0
    assert place.total(f"{PREFIX}cost_total", currency="CNY", line="second") == 0


def test_moves_and_refusals_have_reasons(place: Place) -> None:
    for double in place.doubles.lines:
        double.script = lambda request: (
            Script(TOKENS) if request["output_prefix_ids"] else Script(TOKENS, fault="reset", fault_after=4)
        )
    moves = place.total(f"{PREFIX}moves_total")
    assert place.ask(0, 1) == [200]
    assert place.total(f"{PREFIX}moves_total") - moves == 1
    assert place.total(f"{PREFIX}moves_from_total", reason="broken") == place.total(f"{PREFIX}moves_from_total") >= 1
    assert place.total(f"{PREFIX}attempts_lost_total", reason="broken") >= 1
    for double in place.doubles.lines:
        double.script = lambda request: Script(fault="refuse", status=400, error={"message": "no", "code": "odd_code"})
    assert place.ask(0, 1) == [400]
    text = place.text()
    assert total(text, f"{PREFIX}refusals_total", reason="bad_request", model=MODEL) == 1
    assert "odd_code" not in text  # what an engine says is no label


def test_keys_refused_requests(place: Place) -> None:
    database = Database(f"sqlite:///{place.fleet.directory / 'twinline.db'}")
    keys = Keys(database)
    secret = keys.create("tight", requests_per_minute=1)[1]
    database.close()
    with place.fleet.client(secret) as client:
        until(lambda: place.fleet.complete(client).status_code != 401)
        statuses = [place.fleet.complete(client).status_code for _ in range(4)]
    assert statuses.count(429) >= 2
    with place.fleet.client("tl-nobody") as client:
        assert place.fleet.complete(client).status_code == 401
    refused = f"{PREFIX}key_refusals_total"
    text = place.text()
    assert total(text, refused, key="tight", reason="rate_limit_exceeded") >= statuses.count(429)
    assert total(text, refused, key="-", reason="invalid_api_key") >= 1
    assert "tl-nobody" not in text


def test_the_manual_and_the_dashboard_name_what_there_is(place: Place) -> None:
    families = list(text_string_to_metric_families(place.text()))
    ours = {f"{f.name}_total" if f.type == "counter" else f.name for f in families if f.name.startswith(PREFIX)}
    root = Path(__file__).parents[2]
    manual = (root / "docs" / "operations.md").read_text("utf-8")
    section = manual.split("## Metrics")[1].split("Reasons of")[0]
    table = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`[a-z_`, ]+`) \| [a-z, ]* \|", section, re.M))))
    told = {PREFIX + name for name in table}
    process = {name for name in ours if name.startswith(f"{PREFIX}process_")}
    assert ours - process == told  # each has its line, and no line is of one that is not there
    dashboard = json.loads((root / "examples" / "grafana.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked = set(re.findall(rf"{PREFIX}[a-z_]+", "\n".join(queries) + manual))
    known = ours | {f"{f.name}_{end}" for f in families if f.type == "histogram" for end in ("bucket", "sum", "count")}
    assert len(queries) > 20 and asked <= known


def test_a_gateway_that_hangs_or_is_dead_is_left_out(place: Place) -> None:
    """The last of this place: afterwards there is one gateway."""
    name = f"{PREFIX}line_up"

    def from_first() -> str:
        return place.gateways[0].ask("/metrics").text

    until(lambda: all(total(from_first(), name, gateway=g) for g in ("0", "1")))
    place.gateways[1].process.send_signal(signal.SIGSTOP)
    text = from_first()
    assert total(text, name, gateway="0") > 0 and 'gateway="1"' not in text and lint(text) == []
    place.gateways[1].process.send_signal(signal.SIGCONT)
    until(lambda: total(from_first(), name, gateway="1") > 0)
    place.gateways[1].process.kill()
    place.gateways[1].process.wait()
    text = from_first()
    assert total(text, name, gateway="0") > 0 and 'gateway="1"' not in text and lint(text) == []
    assert any("no metrics from gateway 1" in record["message"] for record in place.gateways[0].records())
    assert place.ask(0, 1) == [200]
