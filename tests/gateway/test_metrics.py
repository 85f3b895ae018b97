"""What the gateway measures, and the lines' own measurements beside it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.harness import MODEL, SPEC, Gateway, served
from tests.gateway.several import Several, run
from tests.lines.line_double import Script

from twinline.gateway.meters import Meters
from twinline.gateway.passed import own_text
from twinline.gateway.served import ModelText
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec

LONG = list(range(10, 30))
PLAYED = LineSpec(name="played", model=MODEL, engine="simulated", weights="nowhere", chip="ascend-910b3")


def samples(door: Gateway) -> dict[str, float]:
    text = door.client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "le")
            found[f"{sample.name}{{{labels}}}"] = sample.value
    assert text.count("# TYPE vllm:num_requests_running ") == 1
    return found


def test_counts_and_times(door: Gateway) -> None:
    before = samples(door)
    tokens = door.says("</think>one two", delay=0.002)
    door.chat()
    prompt = len(door.asked()["prompt"])
    door.chat(stream=True)
    door.chat(temperature=-1)
    door.double.script = lambda request: Script(LONG, fault="reset", fault_after=1, delay=0.01)
    door.complete(stream=True)
    after = samples(door)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    gateway, model = "twinline_gateway_", f"{{line=double,model={MODEL}}}"
    assert grew(f"{gateway}requests_total{{endpoint=chat,status=200}}") == 2
    assert grew(f"{gateway}requests_total{{endpoint=chat,status=400}}") == 1
    assert grew(f"{gateway}requests_total{{endpoint=completions,status=502}}") == 1
    assert grew(f"{gateway}completion_tokens_total{model}") == 2 * len(tokens) + 4
    assert grew(f"{gateway}prompt_tokens_total{model}") >= 2 * prompt
    assert grew(f"{gateway}cached_prompt_tokens_total{model}") == 6
    assert grew(f"{gateway}time_to_first_token_seconds_count{model}") == 6
    assert grew(f"{gateway}inter_token_seconds_sum{model}") > 0
    assert grew(f"{gateway}request_seconds_count{{endpoint=chat}}") == 3
    assert grew(f"{gateway}line_faults_total{model}") == 4
    assert grew(f"{gateway}moves_total{model}") == 3
    assert grew(f"{gateway}refilled_tokens_total{model}") > 3
    assert after[f"{gateway}line_up{model}"] == 1


def test_the_lines_own_names_pass_through(door: Gateway) -> None:
    found = samples(door)
    assert found["vllm:num_requests_running{line=double,model_name=m}"] == 2
    assert found["vllm:generation_tokens_total{line=double,model_name=m}"] == 7
    assert not any(name.startswith("python_info") for name in found)
    text, door.double.metrics = door.double.metrics, "this is { no metrics\n"
    try:
        response = door.client.get("/metrics")
        assert response.status_code == 200 and "vllm:" not in response.text
    finally:
        door.double.metrics = text


def test_simulated_lines_are_told_from_others(tiny_folder: Path) -> None:
    """An engine that plays a chip, and ours on a chip in software: neither is taken for silicon."""
    lines = {name: Line(name, spec) for name, spec in (("real", SPEC), ("played", PLAYED), ("soft", SPEC))}
    lines["real"].facts = {"simulated": False}
    lines["soft"].facts = {"simulated": True}
    meters = Meters()
    text = own_text(meters, [served(MODEL, ModelText.load(tiny_folder), lines.values(), meters)]).decode()
    (family,) = (f for f in text_string_to_metric_families(text) if f.name == "twinline_gateway_line_info")
    assert {sample.labels["line"]: (sample.labels, sample.value) for sample in family.samples} == {
        name: ({"model": MODEL, "line": name, "engine": engine, "chip": chip, "simulated": simulated}, 1)
        for name, engine, chip, simulated in (
            ("real", "native", "cpu", "false"),
            ("played", "simulated", "ascend-910b3", "true"),
            ("soft", "native", "cpu", "true"),
        )
    }


def test_an_answer_moves_to_the_line_that_goes_on_and_not_by_way_of_one_that_refuses(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says("It is easy. </think>", "c")
        made.doubles["a"].script = lambda request: Script(tokens, fault="reset", fault_after=4)
        made.doubles["b"].script = lambda request: Script(fault="refuse", status=503)
        assert (await made.chat()).status_code == 200 and made.asked("b")
        text = (await made.client.get("/metrics")).text
        told = [
            line for line in text.splitlines() if line.startswith("twinline_gateway_moves") and line.endswith(" 1.0")
        ]
        assert told == [
            'twinline_gateway_moves_total{line="c",model="tiny-r1"} 1.0',
            'twinline_gateway_moves_from_total{line="a",model="tiny-r1",reason="broken"} 1.0',
        ]
        assert not [
            line
            for line in text.splitlines()
            if "refilled_tokens_total{" in line and 'line="b"' in line and not line.endswith(" 0.0")
        ]

    run(tiny_folder, ["a", "b", "c"], test)


def test_what_is_waited_for_is_there_before_it_happens(tiny_folder: Path) -> None:
    """A counter that comes with its first count has no increase: a rate over it, and an alarm on that, stay at 0."""

    async def test(made: Several) -> None:
        text = (await made.client.get("/metrics")).text
        there = {
            (sample.name.removeprefix("twinline_gateway_"), sample.labels.get("line"), sample.labels.get("reason"))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.value
        }
        assert {("refusals_total", None, why) for why in ("no_line", "cannot_continue", "line_broken")} <= there
        for name in ("attempts_lost_total", "moves_from_total"):
            assert {(name, "b", why) for why in ("broken", "stalled", "gone", "unreachable", "full")} <= there
        assert {("line_trips_total", "b", None), ("line_faults_total", "b", None)} <= there
        await made.complete(model=f"{MODEL}@c")
        after = (await made.client.get("/metrics")).text
        assert 'refusals_total{model="tiny-r1",reason="line_not_found"} 1.0' in after
        assert after.count("refusals_total{") == text.count("refusals_total{")

    run(tiny_folder, ["a", "b"], test)
