"""Level 7 tells what does not repeat, by op; what only depends on company is a note."""

from __future__ import annotations

import itertools

import torch
from tests.verify.ladder.climbing import bench, changed, climb, planted, verdicts

from twinline.verify.ladder.calls import kept
from twinline.verify.ladder.determinism import equal


def test_a_clean_chip_repeats_itself() -> None:
    found = verdicts(climb(bench(seed=2), "determinism"))
    assert found["determinism.ops"] == found["determinism.repeat"] == "pass"
    assert found["determinism.batch"] in ("pass", "note") and found["determinism.order"] in ("pass", "note")


def test_an_op_that_differs_now_and_then_is_a_limit_by_name() -> None:
    numbers = itertools.count()

    def now_and_then(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 2**-23) if next(numbers) % 5 == 0 else x

    with planted(bench("determinism.ops", "determinism.repeat"), changed("silu", now_and_then)) as one:
        found = climb(one, "determinism")
    assert {(f.check, f.verdict) for f in found} == {("determinism.ops", "limit"), ("determinism.repeat", "limit")}
    assert {f.op for f in found if f.check == "determinism.ops"} == {"silu_mul", "experts"}


def test_every_op_of_the_model_is_kept_in_both_phases() -> None:
    one = bench()
    calls = kept(one)
    ops = {phase: {c.call.op for c in calls if c.phase == phase} for phase in ("prefill", "decode")}
    assert ops["prefill"] | ops["decode"] == {c.call.op for c in calls}
    assert "mla_prefill" in ops["prefill"] - ops["decode"] and "mla_decode" in ops["decode"] - ops["prefill"]
    assert {c.rows for c in calls} == {8, 128}
    linear = [c for c in calls if c.call.op == "linear" and c.phase == "decode"]
    assert sum(c.times for c in linear) == 4 * 3 + 2 + 3 * 2 + 1  # down, q_up, out; one MLP, three shared ones; head


def test_any_nan_equals_any_other() -> None:
    a = torch.tensor([1.0, float("nan")])
    assert equal(a, a.clone()) and not equal(a, torch.tensor([1.0, 2.0]))
