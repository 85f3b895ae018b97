"""Records, medians, plans, bars and the table of the CPU benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.cpu.contenders import CONTENDERS, PRECISIONS, bits, runs
from benchmarks.cpu.results import Record

from benchmarks.cpu import bandwidth, bars, plan, results, table

SPEED = "tokens_per_second"


def record(contender: str, number: int, speed: float, scenario: str = "decode 8", read: float = 3e10) -> Record:
    return Record("qwen-1.5b", "int8", scenario, contender, number, 2, read, 8.0, {SPEED: speed, "gap_p99": 1 / speed})


def test_records_survive_a_file_and_a_line_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "one.jsonl"
    some = [record("native", 0, 50.0), record("vllm", 0, 40.0)]
    for one in some:
        results.append(file, one)
    with file.open("a") as lines:
        lines.write('{"model": "qwen-1.5b", "preci')
    assert results.load(file) == some
    assert results.load(tmp_path / "none.jsonl") == []


def test_a_figure_is_median_least_most_and_count() -> None:
    assert results.figure([3.0, 1.0, 2.0, 10.0]) == results.Figure(2.5, 1.0, 10.0, 4)
    assert results.figure([]) is None


def test_a_ratio_is_the_median_of_rounds_that_both_ran() -> None:
    ours = results.Summary(tuple(record("native", n, s) for n, s in enumerate((10.0, 40.0, 90.0))))
    theirs = results.Summary(tuple(record("openvino", n, s) for n, s in ((0, 10.0), (1, 10.0), (4, 1.0))))
    assert results.paired(ours, theirs, SPEED) == results.Figure(2.5, 1.0, 4.0, 2)
    assert results.paired(ours, results.Summary(()), SPEED) is None


def verdict(found: results.Key | None, records: list[Record], bar: str) -> bars.Verdict:
    (one,) = [v for v in bars.verdicts(results.summarised(records)) if v.bar == bar]
    return one


def test_a_bar_is_met_against_the_best_peer() -> None:
    bar = "int8, 8 users: beside the best peer"
    records = [record("native", n, 70.0) for n in range(3)]
    records += [record("openvino", n, 48.0) for n in range(3)] + [record("llama.cpp", n, 20.0) for n in range(3)]
    found = verdict(None, records, bar)
    assert found.value == pytest.approx(70 / 48) and found.met and "openvino" in found.basis
    records += [record("llama-server", n, 60.0) for n in range(3)]
    assert verdict(None, records, bar).met is False
    assert verdict(None, records[:3], bar).met is None  # no peer: nothing was shown


def test_gaps_are_better_when_smaller() -> None:
    records = [record("native", 0, 70.0), record("openvino", 0, 48.0)]
    found = verdict(None, records, "int8, 8 users: p99 between tokens no worse than the best peer's")
    assert found.value == pytest.approx(48 / 70) and found.met


def test_a_share_is_of_the_bandwidth_beside_each_record() -> None:
    need = bars.read_bytes("qwen-1.5b", 8.0)
    records = [record("native", n, read / need * 0.9, "decode 1", read) for n, read in enumerate((2e10, 5e10, 3e10))]
    found = verdict(None, records, "int8, 1 user: share of the read bandwidth")
    assert found.value == pytest.approx(0.9) and found.met


def test_speed_up_is_set_against_that_of_the_bandwidth() -> None:
    records = [record("native", 0, 10.0, "decode 1, 1 thread", 2e10), record("native", 0, 16.0, "decode 1", 3e10)]
    found = verdict(None, records, "int8: speed-up by threads over the bandwidth's (within 10%)")
    assert found.value == pytest.approx(1.6 / 1.5) and found.met


def test_without_records_nothing_is_judged() -> None:
    assert not [v.bar for v in bars.verdicts({}) if v.met is not None]
    assert len({v.bar for v in bars.verdicts({})}) == len(list(bars.verdicts({}))) > 40


def test_bits_count_the_scales() -> None:
    assert bits("native", "int4", "int4:64") == 4.25
    assert bits("serve", "int4", "int4:32") == bits("llama-server", "int4") == 4.5
    assert bits("llama.cpp", "int8") == 8.5
    assert bits("vllm", "bfloat16") == bits("native", "bfloat16") == 16


def test_contenders_take_turns_and_orders_move_on() -> None:
    scenarios = plan.scenario_list(quick=False, rounds=5)
    turns = list(plan.turns(["qwen-1.5b"], ["bfloat16"], CONTENDERS, scenarios))
    one = [t for t in turns if t.scenario.name == "decode 1"]
    taking = ["native", "serve", "llama.cpp", "llama-server", "openvino", "vllm"]
    assert [t.contender for t in one[:6]] == taking
    assert [t.contender for t in one[6:12]] == taking[1:] + taking[:1]
    assert len(one) == 7 * 6
    assert len([t for t in turns if t.scenario.name == "decode 8"]) == 5 * 6
    assert {t.contender for t in turns if t.scenario.threads} == {"native"}


def test_everybody_runs_what_it_can() -> None:
    assert not runs("vllm", "qwen-1.5b", "int8")
    assert not runs("vllm", "v3-small", "bfloat16")
    assert runs("llama.cpp", "v3-small", "bfloat16")
    assert [p for p in PRECISIONS if runs("native", "tiny-r1", p)] == ["float32"]
    assert not runs("openvino", "tiny-r1", "float32")


def test_the_table_shows_spread_shares_and_failures() -> None:
    records = [record("native", n, s, "decode 1") for n, s in enumerate((10.0, 12.0, 11.0))]
    records += [Record("qwen-1.5b", "int8", "decode 1", "openvino", 0, 2, 3e10, 8.0, error="it ended")]
    text = table.report(results.summarised(records), [])
    assert "| native | **11.0** (10.0-12.0)" in text
    share = 11.0 * bars.read_bytes("qwen-1.5b", 8.0) / 3e10
    assert f"**{share:.0%}"[:-1] in text
    assert "failed: openvino: it ended" in text


def test_the_bars_table_says_met_or_not(tmp_path: Path) -> None:
    some = [
        bars.Verdict("a", 1.2, 1.0, True, "x"), bars.Verdict("b", 7.0, 6.0, False, "y"),
        bars.Verdict("c", None, 1.0, True, "z"),
    ]  # fmt: skip
    rows = table.bars_table(some).splitlines()[2:]
    assert [row.split("|")[4].strip() for row in rows] == ["met", "**not met**", "not measured"]


def test_the_read_bandwidth_is_measured(tmp_path: Path) -> None:
    probe = bandwidth.Probe.built(tmp_path, mebibytes=8)
    for threads in (1, 3):
        passes = probe.passes_of(threads)
        assert len(passes) == bandwidth.PASSES and all(speed > 0 for speed in passes)
    assert bandwidth.between([1.0, 2.0, 9.0], [3.0, 4.0]) == 3.0
