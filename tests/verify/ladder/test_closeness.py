"""What two runs of a model may be apart, beside the reference chip's distance: each limit by figures made for it."""

from __future__ import annotations

import pytest
import torch

from twinline.verify.ladder.closeness import STEADY, Distance, judge


def apart(error: float, kl: float, worst: float = 1.0, count: int = STEADY) -> Distance:
    """The same error and divergence everywhere, but for one position in so many (`worst` times as much)."""
    errors, divergences = torch.full((count,), error).double(), torch.full((count,), kl).double()
    errors[7] *= worst
    return Distance(divergences, errors)


REFERENCE = apart(1e-3, 1e-5, worst=40.0)


@pytest.mark.parametrize(("chip", "over"), [
    (apart(1.4e-3, 1e-5, worst=40.0), ""),
    (apart(1.6e-3, 1e-5, worst=40.0), "mean log-prob error"),
    (apart(1e-3, 1.9e-5, worst=40.0), ""),
    (apart(1e-3, 2.1e-5, worst=40.0), "mean KL"),
    (apart(1e-3, 1e-5, worst=110.0), ""),
    (apart(1e-3, 1e-5, worst=130.0), "largest log-prob error"),
    (apart(float("nan"), 1e-5), "log-prob error"),
])  # fmt: skip
def test_each_limit_is_where_the_rule_says(chip: Distance, over: str) -> None:
    found = judge(chip, REFERENCE, torch.float32)
    assert found.passed is (not over) and over in found.text


def test_a_few_roundings_are_always_allowed() -> None:
    assert judge(apart(2.0**-24, 1e-16), apart(0.0, 0.0), torch.float32).passed
    assert not judge(apart(2.0**-16, 1e-16), apart(0.0, 0.0), torch.float32).passed
