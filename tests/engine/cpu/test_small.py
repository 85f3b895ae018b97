"""Norms, activations, rotation and moves against float64, on every instruction set, with strides and ragged ends."""

from collections.abc import Callable

import pytest
import torch
from tests.engine.op_cases import CASES
from torch import Tensor

from twinline.engine.ops import reference
from twinline.engine.ops.cpu import library, small

pytestmark = [
    pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not())),
    pytest.mark.usefixtures("variant"),
]
both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SIZES = [1, 7, 16, 31, 64, 333]


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def apart(x: Tensor) -> Tensor:
    """The same values with other values between the rows, from an address that is a multiple of nothing."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"), dtype=x.dtype)
    wide[..., 3:-2] = x
    return wide[..., 3:-2]


def near(got: Tensor, exact: Tensor, roundings: float = 1) -> None:
    unit = 2**-8 if got.dtype == torch.bfloat16 else 2**-21
    assert ((got.double() - exact).abs() <= exact.abs() * unit * roundings + 1e-30).all()


@both
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "silu_mul", "rope", "embedding", "kv_write"])
def test_the_cases_of_every_provider(op, dtype):
    for name, args, want in CASES[op](dtype):
        got = getattr(small, op)(*args)
        got = args[0] if got is None else got
        for g, w in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
            allowed = {torch.float32: 1e-6, torch.bfloat16: 0.012}[dtype] * w.abs().max()
            assert (g.double() - w).abs().max() <= allowed, name


@both
def test_norms_of_rows_that_are_apart(dtype):
    for size in SIZES:
        x, residual, weight = (
            random(5, size, dtype=dtype),
            random(5, size, dtype=dtype, scale=2),
            random(size, dtype=dtype),
        )
        assert torch.equal(small.rms_norm(apart(x), weight, 1e-6), small.rms_norm(x, weight, 1e-6))
        normed, total = small.add_rms_norm(apart(x), residual, weight, 1e-6)
        assert torch.equal(total, residual + x)
        assert torch.equal(normed, small.rms_norm(total, weight, 1e-6))


@both
def test_silu_mul_rounds_once(dtype):
    for size in SIZES:
        x = random(3, 2 * size, dtype=dtype, scale=5)
        gate, up = x.double().chunk(2, -1)
        near(small.silu_mul(apart(x)), gate * gate.sigmoid() * up)
    special = small.silu_mul(torch.tensor([[float("nan"), float("inf"), -85.0, 85.0, 1, 1, 1, 1]], dtype=dtype))[0]
    assert special[0].isnan() and special[1].isposinf() and -1e-30 < special[2] <= 0 and special[3] == 85


@both
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_turns_rows_and_heads_that_are_apart(dtype, interleaved):
    for half in (1, 3, 8, 9, 16, 20, 32, 64):
        x, angle = random(4, 3, 2 * half, dtype=dtype), random(4, half).double() * 100
        cos, sin = angle.cos().float(), angle.sin().float()
        got = small.rope(apart(x), cos, sin, interleaved)
        exact = reference.rope(x.double(), cos.double(), sin.double(), interleaved)
        size = reference.rope(x.double().abs(), cos.double().abs(), -sin.double().abs(), interleaved).abs()
        lower = reference.rope(x.double().abs(), cos.double().abs(), sin.double().abs(), interleaved).abs()
        unit = 2**-8 if dtype == torch.bfloat16 else 2**-22
        assert got.is_contiguous()
        assert ((got.double() - exact).abs() <= exact.abs() * unit + torch.maximum(size, lower) * 2**-22).all()
        assert torch.equal(small.rope(x, cos, sin, interleaved), got)


@both
def test_embedding_moves_bits(dtype):
    for size in SIZES:
        table, ids = random(11, size, dtype=dtype), torch.tensor([10, 0, 3, 3])
        table[3, 0] = float("nan")
        got = small.embedding(ids, table)
        assert torch.equal(got.view(torch.uint8), table[ids].view(torch.uint8))


@both
@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
def test_an_id_that_is_not_in_the_table_is_seen(dtype, wrong):
    got = small.embedding(torch.tensor([1, wrong, 2]), random(11, 24, dtype=dtype))
    assert got[1].isnan().all() and got[::2].isfinite().all()


@both
def test_kv_write_puts_parts_side_by_side_and_touches_nothing_else(dtype):
    cache = random(3, 4, 16, 40, dtype=dtype)
    before, slots = cache.clone(), torch.tensor([63, 0, 17])
    parts = (
        random(3, 3, 25, dtype=dtype),
        apart(random(3, 3, 15, dtype=dtype)),
    )
    small.kv_write(cache, slots, *parts)
    reference.kv_write(before, slots, *parts)
    assert torch.equal(cache, before)
    turned = random(3, 3, 40, dtype=dtype).transpose(0, 1)  # heads before rows
    small.kv_write(cache, slots, turned)
    reference.kv_write(before, slots, turned)
    assert torch.equal(cache, before)


def test_rows_depend_on_neither_batch_nor_threads(on_threads: Callable[[int], None]):
    x, weight = random(300, 700, dtype=torch.bfloat16), random(700, dtype=torch.bfloat16)
    cos, sin = random(300, 50), random(300, 50, scale=2)
    on_threads(1)
    norms, acts = small.rms_norm(x, weight, 1e-6), small.silu_mul(x)
    turned = small.rope(x.view(300, 7, 100), cos, sin, True)
    for threads in (2, 4):
        on_threads(threads)
        for rows in (1, 30, 300):
            assert torch.equal(small.rms_norm(x[:rows], weight, 1e-6), norms[:rows])
            assert torch.equal(small.silu_mul(x[:rows]), acts[:rows])
            got = small.rope(x[:rows].view(rows, 7, 100), cos[:rows], sin[:rows], True)
            assert torch.equal(got, turned[:rows])
