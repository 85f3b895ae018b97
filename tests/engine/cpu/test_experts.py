"""A mixture of experts as one op against float64, in every form of weights, on every instruction set."""

from collections.abc import Callable

import pytest
import torch
from tests.engine.op_cases import CASES
from torch import Tensor

from twinline.engine.ops.cpu import library
from twinline.engine.ops.cpu.experts import GroupedExperts
from twinline.engine.ops.quantized import dequantize, quantize
from twinline.facts.weight_form import PLAIN, WeightForm

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
FORMS = [PLAIN, WeightForm("int8"), WeightForm("int8", 64), WeightForm("int4", 32), WeightForm("fp8")]
run = GroupedExperts()


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def choices(rows: int, count: int, per_token: int) -> Tensor:
    drawn = torch.rand(rows, count, generator=torch.Generator().manual_seed(rows))
    return drawn.argsort(-1)[:, :per_token].contiguous()


def stacks(count: int, inner: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    gate_up = random(count, 2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
    return gate_up, random(count, hidden, inner, dtype=dtype, scale=inner**-0.5)


def means(weight: Tensor, form: WeightForm) -> Tensor:
    return (weight if form == PLAIN else dequantize(*quantize(weight, form), form)).double()


def as_given(values: Tensor, form: WeightForm) -> Tensor:
    """Rows as integer weights meet them: rounded to int8 by groups of inputs."""
    if form.kind not in ("int8", "int4"):
        return values
    group, size = form.group or 512, values.shape[-1]
    grouped = torch.nn.functional.pad(values, (0, -size % group)).unflatten(-1, (-1, group))
    step = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((grouped / step).round() * step).flatten(-2)[..., :size]


def exact(x: Tensor, weights: tuple[Tensor, Tensor], form: WeightForm, chosen: Tensor, shares: Tensor) -> Tensor:
    gate_up, down = (means(weight, form) for weight in weights)
    out, given = torch.zeros(x.shape, dtype=torch.float64), as_given(x.double(), form)
    for row, experts in enumerate(chosen.tolist()):
        for place, e in enumerate(experts):
            gate, up = (gate_up[e] @ given[row]).chunk(2)
            inner = as_given(gate * gate.sigmoid() * up, form)
            out[row] += shares[row, place].double() * (down[e] @ inner)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("variant")
def test_the_cases_of_every_provider(dtype):
    for name, (x, weights, *rest), want in CASES["experts"](dtype):
        off = (run(x, run.pack(*weights), *rest).double() - want).abs().max()
        assert off <= {torch.float32: 5e-6, torch.bfloat16: 0.02}[dtype] * want.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.usefixtures("variant")
def test_sums_are_right_in_every_form(form, dtype, on_threads: Callable[[int], None]):
    for number, (count, inner, hidden, rows, per_token) in enumerate(
        [(5, 64, 128, 1, 2), (7, 33, 70, 9, 3), (2, 96, 64, 230, 2), (4, 130, 65, 40, 4)]
    ):
        on_threads(1 + number)
        weights = stacks(count, inner, hidden, dtype)
        x, base = random(rows, hidden, dtype=dtype), random(rows, hidden, dtype=dtype) if number % 2 else None
        chosen, shares = choices(rows, count, per_token), random(rows, per_token).abs()
        got = run(x, run.pack(*weights, form), chosen, shares, base)
        want = exact(x, weights, form, chosen, shares) + (0 if base is None else base.double())
        assert got.shape == x.shape and got.dtype == dtype
        # bfloat16 rounds between the products too; and a value between two whole numbers may go to either.
        allowed = {torch.float32: 2e-6, torch.bfloat16: 0.01}[dtype] + (2e-3 if form.kind in ("int8", "int4") else 0)
        off = (got.double() - want).abs()
        assert off.max() <= allowed * want.abs().max(), (count, inner, hidden)
        assert off.pow(2).mean().sqrt() <= allowed / 2 * want.pow(2).mean().sqrt(), (count, inner, hidden)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.usefixtures("variant")
def test_a_row_depends_on_neither_batch_nor_threads(form, on_threads: Callable[[int], None]):
    gate_up, down = stacks(9, 100, 190)
    packed = run.pack(gate_up, down, form)
    x, base = random(210, 190, dtype=torch.bfloat16), random(210, 190, dtype=torch.bfloat16, scale=3)
    chosen, shares = choices(210, 9, 3), random(210, 3).abs()
    on_threads(1)
    together = run(x, packed, chosen, shares, base)
    on_threads(4)
    for rows in (1, 2, 7, 33, 210):
        assert torch.equal(run(x[:rows], packed, chosen[:rows], shares[:rows], base[:rows]), together[:rows]), rows
    crowded = torch.zeros(300, 3, dtype=torch.long) + torch.arange(3)  # many rows to the same experts
    crowded[-1] = chosen[5]
    rows, beside = x[torch.full((300,), 5)], base[torch.full((300,), 5)]
    got = run(rows, packed, crowded, shares[torch.full((300,), 5)], beside)
    assert torch.equal(got[-1], together[5])


def test_experts_are_added_up_in_float32_and_rounded_once():
    """256 + seven halves - 256 + a base of 512: bfloat16 has no room for the halves."""
    values = [256.0, *[0.5] * 7, -256.0]
    gate_up, down = torch.zeros(len(values), 8, 6), torch.zeros(len(values), 6, 4)
    gate_up[:, 0, 0], gate_up[:, 4, 0] = 32.0, 1.0  # silu(32) * 1 is 32
    down[:, :, 0] = torch.tensor(values)[:, None] / 32
    packed = run.pack(gate_up.bfloat16(), down.bfloat16())
    x, base = torch.ones(2, 6, dtype=torch.bfloat16), torch.full((2, 6), 512.0, dtype=torch.bfloat16)
    chosen, shares = torch.arange(len(values)).expand(2, -1), torch.ones(2, len(values))
    assert run(x, packed, chosen, shares).tolist() == [[3.5] * 6] * 2
    assert run(x, packed, chosen, shares, base).tolist() == [[516.0] * 6] * 2


@pytest.mark.usefixtures("variant")
def test_views_and_empty_batches_are_taken():
    gate_up, down = stacks(4, 32, 64)
    packed = run.pack(gate_up, down)
    x, chosen, shares = random(5, 90, dtype=torch.bfloat16), choices(5, 4, 4), random(5, 4)
    base = random(5, 80, dtype=torch.bfloat16)
    got = run(x[:, 3:67], packed, chosen[:, :2], shares[:, 2:], base[:, :64])
    dense = (one.contiguous() for one in (chosen[:, :2], shares[:, 2:], base[:, :64]))
    assert torch.equal(got, run(x[:, 3:67].contiguous(), packed, *dense))
    assert run(x[:0, :64], packed, chosen[:0], shares[:0]).shape == (0, 64)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.usefixtures("variant")
def test_what_is_not_finite_stays_in_its_row_and_is_seen(form):
    gate_up, down = stacks(4, 64, 64)
    x, chosen, shares = random(6, 64, dtype=torch.bfloat16), choices(6, 4, 2), torch.ones(6, 2)
    clean = run(x, run.pack(gate_up, down, form), chosen, shares)
    x[1, 5], x[2, 9] = float("nan"), float("inf")
    chosen[4, 1] = 4  # an expert that is not there
    got = run(x, run.pack(gate_up, down, form), chosen, shares)
    assert got[1].isnan().all() and not got[2].isfinite().any() and got[4].isnan().all()
    assert torch.equal(got[[0, 3, 5]], clean[[0, 3, 5]])
