"""Three runs of `benchmarks/adapt.py`, which does them all: a clean chip, an op that is wrong, a fault that takes time.

The clean one climbs the whole ladder, as a user would; the others only the levels that are to name the fault.
"""

from __future__ import annotations

import pytest
from benchmarks.adapt import FAULTS, Run, climb, expected, summary, table

from twinline.verify.ladder.finding import Finding


def test_a_clean_chip_is_sound_and_raises_no_alarm() -> None:
    """Here on two levels; tests/test_adapting_doc.py climbs them all."""
    run = climb("", 11, ["ops", "model"])
    assert not run.error and run.alarms == []
    assert (run.code, run.grade, run.good) == (0, "sound", True)


@pytest.mark.parametrize(("fault", "only", "by"), [
    ("rsqrt-approximated", ["ops.rms_norm", "model.trace"], "rms_norm"),
    ("leaks", ["long"], "long"),
    ("wrong-at-a-size=64", ["ops.linear"], "linear"),
    ("wrong-at-a-size=256", ["ops.linear"], "linear"),
    ("wrong-at-a-size=32", ["ops.route"], "route"),
])  # fmt: skip
def test_a_planted_fault_is_found_and_named(fault: str, only: list[str], by: str) -> None:
    run = climb(fault, 12, only)
    assert not run.error and by in run.named
    assert run.good and run.code == 1 and run.grade == "unfit"


def test_every_fault_says_where_it_shows() -> None:
    assert len(FAULTS) >= 30
    for fault in FAULTS.values():
        assert fault.shows and fault.text


def test_a_fault_is_named_only_by_what_it_shows() -> None:
    def found(check: str, op: str = "") -> Finding:
        return Finding(check=check, verdict="fail", text="", op=op)

    assert list(expected("leaks", found("long.memory"))) == ["long"]
    assert list(expected("leaks", found("longer.memory"))) == []
    assert list(expected("leaks", found("ops.linear", "linear"))) == []
    assert list(expected("rsqrt-approximated", found("ops.rms_norm", "rms_norm"))) == ["rms_norm"]


def test_the_summary_holds_the_bar() -> None:
    alarm = [Finding(check="model.trace", verdict="fail", text="")]
    faults = [Run(fault="leaks", seed=i, seconds=50, code=1, grade="unfit", alarms=alarm, named=["long"])
              for i in range(30)]  # fmt: skip
    missed = [Run(fault="leaks", seed=99, seconds=50, code=1, grade="unfit", alarms=alarm, named=[])]
    clean = [Run(fault="", seed=i, seconds=40, code=0, grade="sound", alarms=[], named=[]) for i in range(20)]
    false = [Run(fault="", seed=99, seconds=40, code=0, grade="limited", alarms=alarm, named=[])]
    late = [Run(fault="", seed=98, seconds=500, code=0, grade="sound", alarms=[], named=[])]
    assert summary(faults[:28] + 2 * missed + clean)[1]
    assert not summary(faults[:27] + 3 * missed + clean)[1]
    assert not summary(faults + clean + false)[1]
    assert not summary(faults + clean + late)[1]
    assert "**missed**" in table(missed) and "**false alarm**" in table(false)
