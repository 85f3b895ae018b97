"""Our C++ kernels against float64, on every shape at the edges of their blocks; and their honest absence."""

import pytest
import torch

from twinline.engine.devices.cpu import Cpu
from twinline.engine.ops import cpu, reference
from twinline.engine.ops.plan import DecodePlan
from twinline.engine.ops.registry import Ops, StaticFacts

FACTS = StaticFacts("cpu", torch.bfloat16)
needs_kernels = pytest.mark.skipif(cpu.kernels().why_not is not None, reason=str(cpu.kernels().why_not))


@needs_kernels
@pytest.mark.parametrize("rows_in", [1, 2, 5, 6, 7, 12, 13, 257, 300])
@pytest.mark.parametrize(("size_out", "size_in"), [(64, 64), (1, 2), (63, 30), (65, 31), (200, 2050), (576, 96)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_the_rounded_exact_product(rows_in, size_out, size_in, with_bias):
    generator = torch.Generator().manual_seed(rows_in * size_out)
    x = torch.randn(rows_in, size_in, generator=generator).bfloat16()
    weight = torch.randn(size_out, size_in, generator=generator).bfloat16()
    bias = torch.randn(size_out, generator=generator).bfloat16() if with_bias else None
    linear = cpu.PackedLinear()
    got = linear(x, linear.pack(weight), bias)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    # Half a unit in the last place of bfloat16, and float32's error over the sum.
    summed = x.double().abs() @ weight.double().abs().T
    bound = exact.abs() * 2**-8 + summed * size_in * 2**-24 + 1e-30
    assert got.shape == (rows_in, size_out) and got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= bound).all()


@needs_kernels
def test_linear_takes_rows_that_are_not_contiguous():
    x = torch.randn(7, 96).bfloat16()[:, :64]
    weight = torch.randn(128, 64).bfloat16()
    linear = cpu.PackedLinear()
    packed = linear.pack(weight)
    assert torch.equal(linear(x, packed), linear(x.contiguous(), packed))
    columns = torch.randn(64, 7).bfloat16().T
    assert torch.equal(linear(columns, packed), linear(columns.contiguous(), packed))


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_does_not_depend_on_batch_or_threads(threads):
    """A row's result is the same alone, in any batch, on any number of threads: sums have one order."""
    x, weight = torch.randn(40, 1100).bfloat16(), torch.randn(130, 1100).bfloat16()
    linear = cpu.PackedLinear()
    packed = linear.pack(weight)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = linear(x, packed)
    finally:
        torch.set_num_threads(before)
    for row in (0, 7, 39):
        assert torch.equal(linear(x[row : row + 1], packed)[0], together[row])


@needs_kernels
def test_special_values_come_through():
    x = torch.zeros(2, 64).bfloat16()
    x[0, 0], x[1, 1] = float("inf"), float("nan")
    weight = torch.ones(70, 64).bfloat16()
    linear = cpu.PackedLinear()
    got = linear(x, linear.pack(weight))
    assert got[0].isinf().all() and got[1].isnan().all()


def test_absence_is_a_reason_not_a_crash(monkeypatch):
    monkeypatch.setattr(cpu._old, "kernels", lambda: cpu.Kernels(None, "not built: no C++ compiler"))
    ops = Ops(Cpu.providers, FACTS)
    choice = next(c for c in ops.choices if c.op == "linear")
    assert choice.provider != "cpu"
    assert ("cpu", "not built: no C++ compiler") in choice.passed_over


def test_other_dtypes_are_left_to_others():
    choice = next(c for c in Ops(Cpu.providers, StaticFacts("cpu", torch.float32)).choices if c.op == "linear")
    assert choice.provider == "batched"
    assert ("cpu", "bfloat16 only") in choice.passed_over


@needs_kernels
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(12, 2, 128), (4, 4, 64), (7, 1, 64), (16, 2, 128), (28, 4, 192)]
)
@pytest.mark.parametrize("lengths", [[1], [16], [17, 1, 300], [5, 31, 32, 33, 64, 100]])
def test_attention_decode_is_the_reference(heads, kv_heads, size, lengths):
    generator = torch.Generator().manual_seed(heads * size + len(lengths))
    page_size, total = 16, 64
    k, v = (torch.randn(kv_heads, total, page_size, size, generator=generator).bfloat16() for _ in range(2))
    q = torch.randn(len(lengths), heads, size, generator=generator).bfloat16()
    width = -(-max(lengths) // page_size)
    pages = torch.stack([torch.randperm(total, generator=generator)[:width] for _ in lengths])
    lengths_D = torch.tensor(lengths)
    plan = DecodePlan(pages, lengths_D, torch.arange(width * page_size) >= lengths_D[:, None])
    got = cpu.attention_decode(q, k, v, plan, size**-0.5)
    want = reference.attention_decode(q.double().float(), k, v, plan, size**-0.5)
    torch.testing.assert_close(got.float(), want, rtol=2**-8, atol=2**-8)


@needs_kernels
def test_attention_decode_is_exact_about_large_scores():
    """One place that outweighs all others, and scores far below it, give that place's value."""
    k = torch.zeros(1, 2, 16, 64).bfloat16()
    k[0, 1, 3] = 8
    v = torch.randn(1, 2, 16, 64).bfloat16()
    plan = DecodePlan(torch.tensor([[0, 1]]), torch.tensor([32]), None)
    got = cpu.attention_decode(torch.full((1, 2, 64), 8.0).bfloat16(), k, v, plan, 1.0)
    assert torch.equal(got[0, 1], v[0, 1, 3])
