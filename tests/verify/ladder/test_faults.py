"""Level 8 breaks a chip and looks whether that is told, in time and by name."""

from __future__ import annotations

import pytest
from tests.verify.ladder.climbing import bad, bench, climb, planted, verdicts

from twinline.engine.devices.simulated.chip import CHIPS
from twinline.verify.ladder import faults


def test_a_clean_chip_breaks_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "IN_TIME", 20.0)  # a busy machine may stand still for longer than a chip in use may
    found = climb(bench("faults.memory", "faults.cache_too_large", "faults.nan", "faults.lost"), "faults")
    assert set(verdicts(found).values()) == {"pass"}
    lost = next(f for f in found if f.check == "faults.lost")
    assert lost.figures["seconds"] < 20 and "ChipLost" in lost.text and "another device goes on" in lost.text
    assert CHIPS[0].lost is None and not CHIPS[0].hangs


def test_a_hang_is_noticed_and_the_chip_is_given_back() -> None:
    found = climb(bench("faults.hang"), "faults")
    assert verdicts(found) == {"faults.hang": "pass"}
    assert not CHIPS[0].hangs


def test_running_out_of_memory_must_say_so() -> None:
    one = bench("faults.memory")
    with planted(one, lambda chip: setattr(chip.memory, "refuse", lambda text: RuntimeError("error code 2"))):
        (found,) = bad(climb(one, "faults"))
    assert "error code 2" in found.text and "RuntimeError" in found.text


def test_memory_that_is_not_there_must_not_be_given() -> None:
    one = bench("faults.memory")
    with planted(one, lambda chip: setattr(chip.memory, "report", lambda memory: 2**20)):
        (found,) = bad(climb(one, "faults"))
    assert "were given" in found.text


def test_a_nan_that_spreads_to_another_request_is_found() -> None:
    def poison(call, out):  # type: ignore[no-untyped-def]
        return out * 0 + float("nan") if bool(out.isnan().any()) else out

    with planted(bench("faults.nan"), lambda chip: chip.plant(["linear"], after=poison)) as one:
        (found,) = bad(climb(one, "faults"))
    assert found.check == "faults.nan"


def test_requests_that_end_before_the_chip_does_say_nothing_of_its_loss() -> None:
    calls = 0

    def poison(call, out):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return out * float("nan") if calls > 60 else out

    with planted(bench("faults.lost"), lambda chip: chip.plant(["linear"], after=poison)) as one:
        (found,) = bad(climb(one, "faults"))
    assert "ended before the chip did" in found.text and "NaN" in found.text


def test_on_the_cpu_nothing_is_killed() -> None:
    found = {f.check: f for f in climb(bench(device="cpu"), "faults")}
    assert found["faults.lost"].verdict == found["faults.hang"].verdict == "skipped"
    assert "simulated" in found["faults.lost"].text
    assert found["faults.nan"].verdict == "pass"
