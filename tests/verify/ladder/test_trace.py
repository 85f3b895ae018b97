"""What an op may err by in place: so many times what the reference op errs by, and no more."""

from __future__ import annotations

import pytest
import torch

from twinline.verify.ladder.trace import FLOOR_ELSE, _distance


@pytest.mark.parametrize(("times", "sound"), [(1.0, True), (3.9, True), (4.2, False), (float("nan"), False)])
def test_an_op_in_place_is_held_to_the_references_error(times: float, sound: bool) -> None:
    gold = torch.linspace(-1, 1, 101).double()
    error = 1e-3
    out, ref = gold.clone(), gold.clone()
    ref[40] += error
    out[60] += error * times
    seen, near, allowed, where = _distance(out, gold, ref, torch.float32, FLOOR_ELSE)
    assert near == pytest.approx(error) and (seen <= allowed) is sound and "(60,)" in where


def test_a_result_of_another_shape_is_never_sound() -> None:
    seen, _, allowed, where = _distance(torch.ones(2), torch.ones(3), torch.ones(3), torch.float32, FLOOR_ELSE)
    assert not seen <= allowed and "(3,) is right" in where
