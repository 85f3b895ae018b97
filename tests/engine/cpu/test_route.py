"""The router against float64, on every instruction set: scores, groups, ties, and what is not a number."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from tests.engine.op_cases import CASES
from torch import Tensor

from twinline.engine.ops import reference
from twinline.engine.ops.cpu import library
from twinline.engine.ops.cpu.route import route
from twinline.facts.models import Experts

pytestmark = [
    pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not())),
    pytest.mark.usefixtures("variant"),
]
V3 = Experts(64, 6, 8, 3, "sigmoid", "top2", True, True, 2.5, 32, 32)
V2 = dataclasses.replace(V3, score="softmax", limit="max", correction_bias=False, normalise=False)
QWEN3 = dataclasses.replace(V2, count=61, groups=1, groups_kept=1, limit="none", normalise=True, scale=1.0)
kinds = pytest.mark.parametrize("e", [V3, V2, QWEN3], ids=["v3", "v2", "qwen3"])


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def gates(e: Experts, size: int) -> tuple[Tensor, Tensor | None]:
    bias = random(e.count, scale=0.1) if e.correction_bias else None
    return random(e.count, size, scale=size**-0.5), bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cases_of_every_provider(dtype):
    for name, args, want in CASES["route"](dtype):
        chosen, weights = route(*args)
        got = torch.zeros(want.shape).scatter_(1, chosen, weights)
        assert (got.double() - want).abs().max() <= 2e-6 * want.abs().max(), name


@kinds
@pytest.mark.parametrize("size", [1, 15, 100, 1030])
def test_choices_and_weights_are_the_definitions(e, size):
    gate, bias = gates(e, size)
    for rows in (1, 3, 5, 70):
        x = random(rows, size + 9)[:, 4:-5].bfloat16()
        wide = torch.full((rows, size + 9), float("nan"), dtype=torch.bfloat16)
        wide[:, 4:-5] = x
        chosen, weights = route(wide[:, 4:-5], gate, bias, e)
        want, shares = reference.route(x.double(), gate.double(), None if bias is None else bias.double(), e)
        # In order of choice, unless two are so close that float32 cannot tell them apart.
        clear = (chosen == want).all(-1)
        assert clear.float().mean() > 0.97 or (rows < 70 and clear.any())
        torch.testing.assert_close(weights[clear], shares[clear].float(), rtol=3e-6, atol=1e-7)
        assert chosen.dtype == torch.int64 and weights.dtype == torch.float32


def test_of_equals_the_lower_number_is_taken():
    for e in (dataclasses.replace(V3, groups=1, limit="none"), V3, QWEN3):
        gate, bias = torch.zeros(e.count, 40), torch.zeros(e.count) if e.correction_bias else None
        chosen, weights = route(random(2, 40), gate, bias, e)
        assert chosen.tolist() == [list(range(e.per_token))] * 2
        share = e.scale / (e.per_token if e.normalise else 1 / (0.5 if e.score == "sigmoid" else 1 / e.count))
        torch.testing.assert_close(weights, torch.full_like(weights, share))


def test_the_bias_chooses_and_does_not_weigh():
    e = dataclasses.replace(V3, groups=1, limit="none", per_token=2, normalise=False, scale=1.0)
    bias = torch.zeros(e.count)
    bias[[9, 40]] = torch.tensor([3.0, 7.0])
    chosen, weights = route(torch.zeros(1, 8), random(e.count, 8), bias, e)
    assert chosen.tolist() == [[40, 9]] and weights.tolist() == [[0.5, 0.5]]


def test_experts_of_a_group_that_is_out_are_taken_last():
    """Scores below 0 stand above those of groups that are out, whose scores would be greater than theirs."""
    e = dataclasses.replace(V3, groups_kept=1, per_token=8)
    bias = torch.full((e.count,), -5.0)
    bias[16:18] = 4.0  # the group of 16..23 has the two best
    bias[18:24] = -9.0
    chosen, _ = route(random(3, 8), torch.zeros(e.count, 8), bias, e)
    assert all(sorted(row) == list(range(16, 24)) for row in chosen.tolist())


@kinds
def test_a_row_that_is_no_number_names_experts_and_spoils_no_other(e):
    x, (gate, bias) = random(4, 32), gates(e, 32)
    x[1, 3], x[2, 7] = float("nan"), float("inf")
    chosen, weights = route(x, gate, bias, e)
    assert all(len({*row}) == e.per_token and 0 <= min(row) <= max(row) < e.count for row in chosen.tolist())
    assert weights[1].isnan().all()
    alone, shares = route(x[3:], gate, bias, e)
    assert torch.equal(chosen[3:], alone) and torch.equal(weights[3:], shares) and shares.isfinite().all()


@pytest.mark.parametrize("scale", [40.0, 300.0])
@kinds
def test_far_scores_stay_numbers(e, scale):
    gate, bias = gates(e, 64)
    _, weights = route(random(20, 64, scale=scale), gate, bias, e)
    assert weights.isfinite().all() and (weights >= 0).all()


@kinds
def test_a_row_depends_on_neither_batch_nor_threads(e, on_threads: Callable[[int], None]):
    x, (gate, bias) = random(150, 2000).bfloat16(), gates(e, 2000)
    on_threads(1)
    chosen, weights = route(x, gate, bias, e)
    on_threads(4)
    for rows in (1, 2, 5, 64, 67, 150):
        got = route(x[:rows], gate, bias, e)
        assert torch.equal(got[0], chosen[:rows]) and torch.equal(got[1], weights[:rows])
