"""Level 5 finds what only time brings: drift, leaks, a first answer that is another afterwards."""

from __future__ import annotations

import pytest
import torch
from tests.verify.ladder.climbing import bench, climb, planted
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.verify.ladder import long


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "STEPS", 130)
    monkeypatch.setattr(long, "SETTLE", 8)


def test_a_clean_chip_neither_drifts_nor_leaks() -> None:
    found = climb(bench(), "long")
    assert [(f.check, f.verdict) for f in found] == [
        ("long.drift", "pass"), ("long.memory", "pass"), ("long.again", "pass")
    ]  # fmt: skip


def test_drift_is_found_with_the_step_where_it_begins_and_the_first_answer_is_another() -> None:
    one = bench()

    def plant(chip: Chip) -> None:
        begun = chip.ops + 25_000

        def grow(call: Call, out: object) -> object:
            assert isinstance(out, Tensor)
            return out * (1 + 2**-6) if call.chip.ops > begun else out

        chip.plant(["linear"], after=grow)

    with planted(one, plant):
        found = {f.check: f for f in climb(one, "long")}
    assert found["long.drift"].verdict == "fail"
    assert 30 < found["long.drift"].figures["first_step"] < 130
    assert found["long.again"].verdict == "fail" and "linear" in found["long.again"].text
    assert found["long.memory"].verdict == "pass"


def test_a_leak_is_found_with_its_size() -> None:
    with planted(bench(), lambda chip: setattr(chip.memory, "leak", 7)) as one:
        found = {f.check: f for f in climb(one, "long")}
    assert found["long.memory"].verdict == "fail"
    assert found["long.memory"].figures["bytes_per_step"] > 100
    assert found["long.drift"].verdict == "pass"


def test_memory_that_grows_once_is_no_leak() -> None:
    counts = [1000] * 60 + [5000] * 200
    assert [f.verdict for f in long._memory(counts, [])] == ["pass"]
    assert [f.verdict for f in long._memory([1000 + 3 * i for i in range(260)], [])] == ["fail"]
    assert [f.verdict for f in long._memory([7] * 260, [10**9 - 8 * i for i in range(260)])] == ["fail"]
    assert [f.verdict for f in long._memory([], [])] == ["skipped"]
    for steps in (91, 120, 160, 260):  # a slow chip makes fewer
        for at in range(long.SETTLE, steps):
            once = [1000] * at + [5000] * (steps - at)
            assert [f.verdict for f in long._memory(once, [])] == ["pass"], (steps, at)
        assert [f.verdict for f in long._memory([1000 + 3 * i for i in range(steps)], [])] == ["fail"]


@pytest.mark.parametrize("check", ["long", "long.decode", "long.drift", "long.again"])
def test_each_finding_can_be_asked_for_by_its_name(check: str) -> None:
    """As the report's line for the next try does."""
    assert {f.check for f in climb(bench(check, device="cpu"), "long")} == {"long.drift", "long.memory", "long.again"}


def test_the_cpu_counts_no_memory() -> None:
    assert long.memory_used(bench(device="cpu")) is None
    torch.set_num_threads(1)
