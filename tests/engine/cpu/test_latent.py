"""Multi-head latent attention against float64: decode, both ways of prefill, and each head's own matrix."""

from __future__ import annotations

import pytest
import torch
from tests.engine.cpu.paged import attention, cache_of, check, decode_plan, normal, pages_of, prefill_plan
from torch import Tensor

from twinline.engine.ops.cpu import library
from twinline.engine.ops.cpu.latent import cheaper_in_latent_space, mla_absorb, mla_decode, mla_prefill

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize(("heads", "rank", "turned"), [(16, 512, 64), (3, 18, 10), (80, 32, 8), (5, 7, 3)])
@pytest.mark.parametrize("lengths", [[1], [16, 17], [300, 1, 256]])
@pytest.mark.usefixtures("variant")
def test_decode_is_the_formula(heads, rank, turned, lengths, dtype):
    places = [normal(1, n, rank + turned, seed=i, dtype=dtype) for i, n in enumerate(lengths)]
    pages = pages_of(lengths)
    q = normal(len(lengths), heads, rank, seed=8, dtype=dtype)
    q_pe = normal(len(lengths), heads, turned + 5, seed=9, dtype=dtype)[..., :turned]
    scale = (rank + turned) ** -0.5
    got = mla_decode(q, q_pe, cache_of(places, pages), decode_plan(pages, lengths), scale)
    for i, held in enumerate(places):
        whole = torch.cat((q, q_pe), -1)[i : i + 1]
        check(got[i : i + 1], *attention(whole, held, held[..., :rank], scale))


@DTYPES
@pytest.mark.parametrize(("heads", "size_in", "size_out"), [(16, 128, 512), (3, 12, 18), (2, 7, 65), (1, 33, 1)])
@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.usefixtures("variant")
def test_absorb_is_each_heads_product_with_the_weight_either_way_round(heads, size_in, size_out, rows, dtype):
    x = normal(rows, heads, size_in + 6, seed=1, dtype=dtype)[..., :size_in]
    weight = normal(heads, size_in + 3, size_out, seed=2, dtype=dtype)[:, :size_in]
    turned = weight.transpose(1, 2).contiguous().transpose(1, 2)
    exact = torch.einsum("dhi,hio->dho", x.double(), weight.double())
    summed = torch.einsum("dhi,hio->dho", x.double().abs(), weight.double().abs())
    for given in (weight, turned):
        got = mla_absorb(x, given)
        rounding = 2**-8 if dtype == torch.bfloat16 else 2**-23
        assert got.shape == exact.shape and got.dtype == dtype
        assert ((got.double() - exact).abs() <= exact.abs() * rounding + summed * size_in * 2**-24 + 1e-30).all()
        assert torch.equal(got[rows // 2], mla_absorb(x[rows // 2 :], given)[0])


SHAPES = ((3, 12, 8, 10, 18), (4, 22, 16, 24, 36), (2, 128, 64, 128, 512), (5, 7, 3, 9, 31))
"""Heads, nope, rope, value, rank."""


def prefill(shape: tuple[int, ...], past: int, rows: int, dtype: torch.dtype) -> tuple[tuple, Tensor, Tensor]:
    """Arguments of `mla_prefill`, and what `check` compares with."""
    heads, nope, turned, value, rank = shape
    up = normal(heads, nope + value, rank, seed=5, dtype=dtype, scale=rank**-0.5)
    uk, uv = up[:, :nope], up[:, nope:]
    held = normal(1, past + rows, rank + turned, seed=6, dtype=dtype)
    pages = pages_of([past + rows])
    q = normal(rows, heads, nope + turned, seed=7, dtype=dtype)
    scale = (nope + turned) ** -0.5
    latents, k_pe = held[0].double().split([rank, turned], -1)
    k = torch.cat((torch.einsum("lc,hdc->hld", latents, uk.double()), k_pe.expand(heads, -1, -1)), -1)
    v = torch.einsum("lc,hvc->hlv", latents, uv.double())
    exact, spread = attention(q, k, v, scale)
    if dtype == torch.float32:  # where values cancel, their products' error is the larger one
        spread = attention(q, k, torch.einsum("lc,hvc->hlv", latents.abs(), uv.double().abs()), scale)[0]
    plan = prefill_plan(pages[0], past, rows)
    return (q[..., :nope], q[..., nope:], cache_of([held], pages), uk, uv, plan, scale), exact, spread


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("past", "rows"), [(0, 5), (0, 33), (250, 13), (15, 2), (100, 170)])
@pytest.mark.usefixtures("variant")
def test_prefill_is_the_formula(shape, past, rows, dtype):
    args, exact, spread = prefill(shape, past, rows, dtype)
    # Keys and values, or queries and results in the latent space, are rounded on the way: scores are off by about
    # 2^-9 of their size, which is at most 4 here, and so are the values.
    check(mla_prefill(*args), exact, spread, inner=0.03 if dtype == torch.bfloat16 else 1e-5)


def test_both_ways_of_prefill_are_tested_above():
    ways = {cheaper_in_latent_space(rows, past + rows, nope, value, rank)
            for _, nope, _, value, rank in SHAPES for past, rows in ((0, 33), (250, 13), (15, 2))}  # fmt: skip
    assert ways == {True, False}


@DTYPES
@pytest.mark.usefixtures("variant")
def test_few_rows_give_the_bits_of_decodes(dtype):
    (q, q_pe, cache, uk, uv, plan, scale), *_ = prefill((3, 12, 8, 10, 18), 290, 2, dtype)
    assert cheaper_in_latent_space(2, 292, 12, 10, 18)
    together = mla_prefill(q, q_pe, cache, uk, uv, plan, scale)
    for row in range(2):
        one = decode_plan([plan.pages_P.tolist()], [291 + row])
        latent = mla_decode(mla_absorb(q[row : row + 1], uk), q_pe[row : row + 1], cache, one, scale)
        assert torch.equal(mla_absorb(latent, uv.transpose(1, 2))[0], together[row])


@DTYPES
@pytest.mark.usefixtures("variant")
def test_prefill_does_not_depend_on_threads_or_on_how_rows_are_shared_out(on_threads, dtype):
    args, *_ = prefill((1, 12, 8, 10, 18), 20, 400, dtype)
    assert not cheaper_in_latent_space(400, 420, 12, 10, 18)
    results = []
    for threads in (1, 2, 4):
        on_threads(threads)
        results.append(mla_prefill(*args))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
