"""Linear layers on packed weights against float64, in every form, on every instruction set, at the edges of blocks."""

import pytest
import torch
from torch import Tensor

from twinline.engine.devices.cpu import Cpu
from twinline.engine.ops.cpu import library, linear
from twinline.engine.ops.quantized import dequantize, quantize
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.facts.weight_form import PLAIN, WeightForm

needs_kernels = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
QUANTIZED = [
    WeightForm("int8"),
    WeightForm("int8", 64),
    WeightForm("int4", 32),
    WeightForm("int4", 128),
    WeightForm("fp8"),
]
# Outputs, inputs, rows: one and many tiles of rows, blocks and groups, with ragged ends of each.
SHAPES = [(64, 64, 1), (1, 2, 3), (63, 30, 5), (65, 31, 6), (200, 2050, 7), (130, 300, 13), (72, 257, 210)]
run = linear.PackedLinear()


@pytest.fixture(params=library.variants() if library.why_not() is None else [])
def variant(request: pytest.FixtureRequest):
    loaded = library.library()
    assert loaded.handle.twinline_use(request.param.encode())
    yield request.param
    loaded.handle.twinline_use(loaded.variant.encode())


@pytest.fixture
def restored_threads():
    yield
    library.set_threads(torch.get_num_threads())


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def bound(x: Tensor, weight: Tensor, exact: Tensor, form: WeightForm) -> Tensor:
    """A rounding of the result, float32's error over the sum, half a step of the rows where they are rounded too."""
    inputs, sizes = x.shape[1], x.double().abs()
    last = exact.abs() * (2**-8 if x.dtype == torch.bfloat16 else 2**-23)
    allowed = last + sizes @ weight.abs().T * inputs * 2**-24 + 1e-30
    if form.kind in ("int8", "int4"):
        group = form.group or 512
        grouped = torch.nn.functional.pad(sizes, (0, -inputs % group)).unflatten(1, (-1, group))
        half_a_step = grouped.amax(-1, keepdim=True).expand_as(grouped).flatten(1)[:, :inputs] / 254
        allowed += half_a_step * 1.001 @ weight.abs().T
    return allowed


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("form", [PLAIN, *QUANTIZED], ids=str)
@pytest.mark.usefixtures("variant", "restored_threads")
def test_results_are_the_rounded_exact_products(form, dtype):
    for number, (outputs, inputs, rows) in enumerate(SHAPES):
        library.set_threads(1 + number % 4)
        x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype)
        bias = random(outputs, dtype=dtype) if number % 2 else None
        packed = run.pack(weight, form)
        got = run(x, packed, bias)
        means = weight if form == PLAIN else dequantize(*quantize(weight, form), form)
        exact = x.double() @ means.double().T + (0 if bias is None else bias.double())
        assert got.shape == (rows, outputs) and got.dtype == dtype
        assert ((got.double() - exact).abs() <= bound(x, means.double(), exact, form)).all(), (outputs, inputs, rows)
        for row in {0, rows // 2, rows - 1}:  # the same alone as in the batch
            assert torch.equal(run(x[row : row + 1], packed, bias)[0], got[row]), (outputs, inputs, rows, row)


@needs_kernels
@pytest.mark.usefixtures("variant", "restored_threads")
def test_floats_that_were_bfloat16_are_kept_as_that_and_give_the_same_bits(monkeypatch):
    for number, (outputs, inputs, rows) in enumerate(SHAPES):
        library.set_threads(1 + number % 4)
        x, weight = random(rows, inputs), random(outputs, inputs, dtype=torch.bfloat16).float()
        narrow, exact = run.pack(weight), weight.clone()
        exact[-1, -1] += 2**-20
        with monkeypatch.context() as m:
            m.setattr(linear, "_narrow", lambda values: False)
            wide = run.pack(weight)
        assert (narrow.words[1], wide.words[1], run.pack(exact).words[1]) == (linear.WIDENED, 0, 0)
        assert narrow.data.nbytes == -(-inputs // 2) / inputs * wide.data.nbytes
        assert torch.equal(run(x, narrow), run(x, wide)), (outputs, inputs, rows)
    stack = random(3, 70, 33, dtype=torch.bfloat16).float()
    assert torch.equal(linear.pack(stack).data, torch.cat([linear.pack(matrix).data for matrix in stack]))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", QUANTIZED, ids=str)
@pytest.mark.usefixtures("variant")
def test_packing_rounds_as_the_definition_does(form, dtype):
    weight = random(3, 70, 333, dtype=dtype) * 0.02
    weight[0, :, 17] = 0
    weight[1, 5] = 0
    weight[2, 9, 3], weight[2, 9, 4] = 0.5, -0.5  # two as great: the first one has the sign
    weight[2, 11, 8] = 3e-6
    numbers, scales = quantize(weight, form)
    packed, given = linear.pack(weight, form), linear.pack(numbers, form, scales)
    assert torch.equal(packed.data, given.data)
    alone = [linear.pack(matrix, form).data for matrix in weight]
    assert packed.count == 3 and torch.equal(packed.data, torch.cat(alone))


@needs_kernels
@pytest.mark.parametrize("form", [PLAIN, WeightForm("int8"), WeightForm("int4", 64), WeightForm("fp8")], ids=str)
def test_rows_may_be_apart_or_columns(form):
    packed = run.pack(random(128, 64, dtype=torch.bfloat16), form)
    for x in (random(7, 97, dtype=torch.bfloat16)[:, 1:65], random(64, 7, dtype=torch.bfloat16).T):
        assert torch.equal(run(x, packed), run(x.contiguous(), packed))
    assert run(random(0, 64, dtype=torch.bfloat16), packed).shape == (0, 128)


@needs_kernels
@pytest.mark.parametrize("form", [PLAIN, *QUANTIZED], ids=str)
@pytest.mark.usefixtures("variant", "restored_threads")
def test_a_row_depends_on_neither_batch_nor_threads(form):
    """A row's result has one order of sums: alone, in any batch, on any number of threads."""
    x, packed = random(230, 700, dtype=torch.bfloat16), run.pack(random(450, 700, dtype=torch.bfloat16), form)
    library.set_threads(1)
    together = run(x, packed)
    library.set_threads(4)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 32, 193, 230):
        assert torch.equal(run(x[:rows], packed), together[:rows]), rows


@needs_kernels
@pytest.mark.parametrize("form", [PLAIN, *QUANTIZED], ids=str)
@pytest.mark.usefixtures("variant")
def test_what_is_not_finite_does_not_vanish(form):
    x = torch.ones(3, 1100, dtype=torch.bfloat16)
    x[0, 300], x[1, 1099] = float("inf"), float("nan")
    got = run(x, run.pack(torch.ones(70, 1100, dtype=torch.bfloat16), form))
    assert not got[0].isfinite().any() and got[1].isnan().all() and got[2].isfinite().all()
    assert form != PLAIN or got[0].isinf().all()


@needs_kernels
@pytest.mark.usefixtures("variant")
def test_every_value_of_fp8_is_exact():
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    packed = linear.pack(numbers, WeightForm("fp8"), torch.ones(1, 2))
    for dtype in (torch.bfloat16, torch.float32):
        got = run(torch.eye(256, dtype=dtype)[numbers[0].float().isfinite()], packed)[:, 0]
        assert got.isnan().all()  # one number of the row is not one, and 0 * NaN is NaN
        numbers_only = numbers.float().nan_to_num(0).to(torch.float8_e4m3fn)
        got = run(torch.eye(256, dtype=dtype), linear.pack(numbers_only, WeightForm("fp8"), torch.ones(1, 2)))[:, 0]
        assert torch.equal(got.float(), numbers_only[0].float())


def test_absence_is_a_reason_not_a_crash(monkeypatch):
    monkeypatch.setattr(library, "_load", lambda: "not built: no C++ compiler")
    choice = next(c for c in Ops(Cpu.providers, StaticFacts("cpu", torch.bfloat16)).choices if c.op == "linear")
    assert choice.provider != "cpu"
    assert ("cpu", "not built: no C++ compiler") in choice.passed_over


def test_who_packs_plain_weights_alone_says_so(monkeypatch):
    monkeypatch.setattr(library, "_load", lambda: "not built: no C++ compiler")
    ops = Ops(Cpu.providers, StaticFacts("cpu", torch.bfloat16, weights=WeightForm("int4", 32)))
    choice = next(c for c in ops.choices if c.op == "linear")
    assert choice.provider == "reference"
    assert ("batched", "no int4:32 weights") in choice.passed_over


@needs_kernels
def test_float16_is_left_to_others():
    choice = next(c for c in Ops(Cpu.providers, StaticFacts("cpu", torch.float16)).choices if c.op == "linear")
    assert choice.provider == "batched"
    assert ("cpu", "float32 and bfloat16 only") in choice.passed_over
