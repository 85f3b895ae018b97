"""Level 4 sums and exchanges between two processes, and says which collective is wrong."""

from __future__ import annotations

import pytest
import torch
from tests.verify.ladder.climbing import bad, bench, climb, planted, verdicts
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call
from twinline.verify.ladder.collective_rank import check


def test_a_clean_chips_collectives_are_right() -> None:
    found = verdicts(climb(bench(), "collectives"))
    names = ("peer_copy", "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")
    assert found == {f"collectives.{name}": "pass" for name in names}


def test_a_wrong_sum_is_named_and_the_others_pass() -> None:
    one = bench("collectives.all_reduce", "collectives.broadcast", device="simchip:clean+all-reduce-in-16-bits")
    found = verdicts(climb(one, "collectives"))
    assert found == {"collectives.all_reduce": "fail", "collectives.broadcast": "pass"}


def test_a_sum_that_is_wrong_now_and_then() -> None:
    one = bench("collectives.all_reduce", device="simchip:clean+all-reduce-loses-a-rank=10")
    assert verdicts(climb(one, "collectives")) == {"collectives.all_reduce": "fail"}


def test_a_sum_is_held_to_the_rounding_of_its_dtype() -> None:
    right = torch.linspace(-1, 1, 64, dtype=torch.float64)
    for off, verdict in ((0.0, "pass"), (0.1, "fail")):
        found = check("all_reduce", lambda size, off=off: ((right + off).bfloat16(), right, 2))
        assert (found.verdict, found.dtype) == (verdict, "bfloat16")


def test_a_copy_between_chips_that_loses_something() -> None:
    def cut(call: Call, out: object) -> object:
        if call.direction == "to_peer" and isinstance(out, Tensor):
            out.view(-1)[-1] = 0
        return out

    one = bench("collectives.peer_copy")
    with planted(one, lambda chip: chip.plant(["_to_copy", "to", "copy_"], after=cut)):
        assert [f.check for f in bad(climb(one, "collectives"))] == ["collectives.peer_copy"]


def test_one_device_is_skipped_with_the_reason() -> None:
    found = climb(bench(device="cpu"), "collectives")
    assert {f.verdict for f in found} == {"skipped"} and all("one device" in f.text or "CPU" in f.text for f in found)


@pytest.mark.parametrize(("off", "summed", "verdict"), [
    (0.0, 0, "pass"), (1e-9, 0, "fail"), (1e-7, 2, "pass"), (1e-5, 2, "fail"), (float("nan"), 2, "fail"),
])  # fmt: skip
def test_moves_are_exact_and_sums_round(off: float, summed: int, verdict: str) -> None:
    right = torch.linspace(-1, 1, 64, dtype=torch.float64)
    found = check("all_reduce", lambda size: (right + off, right, summed))
    assert found.verdict == verdict
