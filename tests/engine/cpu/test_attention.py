"""Grouped-query attention against float64, and the same bits for a row wherever it comes."""

from __future__ import annotations

import pytest
import torch
from tests.engine.cpu.paged import attention, cache_of, check, decode_plan, normal, pages_of, prefill_plan
from torch import Tensor

from twinline.engine.ops.cpu import library
from twinline.engine.ops.cpu.arena import Arena
from twinline.engine.ops.cpu.attention import attention_decode, attention_prefill

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])

SHAPES = ((12, 2, 128), (4, 4, 64), (7, 1, 80), (3, 3, 10), (80, 1, 16), (5, 1, 9), (28, 4, 192))
"""Query heads, KV heads, head size: whole vectors, ragged ones, odd ones; more heads than one tile holds."""


def sequences(lengths: list[int], heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> tuple:
    k, v = ([normal(kv_heads, n, size, seed=7 * i + s, dtype=dtype) for i, n in enumerate(lengths)] for s in (1, 2))
    pages = pages_of(lengths)
    return k, v, cache_of(k, pages), cache_of(v, pages), pages


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "size"), SHAPES)
@pytest.mark.parametrize("lengths", [[1], [16], [17, 1, 300], [255, 256, 257, 64, 65], [1030]])
@pytest.mark.usefixtures("variant")
def test_decode_is_the_formula(heads, kv_heads, size, lengths, dtype):
    k, v, k_cache, v_cache, pages = sequences(lengths, heads, kv_heads, size, dtype)
    q = normal(len(lengths), heads, size, seed=3, dtype=dtype)
    got = attention_decode(q, k_cache, v_cache, decode_plan(pages, lengths), size**-0.5)
    for i in range(len(lengths)):
        check(got[i : i + 1], *attention(q[i : i + 1], k[i], v[i], size**-0.5))


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "size"), SHAPES)
@pytest.mark.parametrize(("past", "rows"), [(0, 2), (0, 16), (0, 33), (15, 2), (250, 13), (300, 90)])
@pytest.mark.usefixtures("variant")
def test_prefill_is_the_formula(heads, kv_heads, size, past, rows, dtype):
    k, v, k_cache, v_cache, pages = sequences([past + rows], heads, kv_heads, size, dtype)
    q = normal(rows, heads, size, seed=3, dtype=dtype)
    got = attention_prefill(q, k_cache, v_cache, prefill_plan(pages[0], past, rows), size**-0.5)
    check(got, *attention(q, k[0], v[0], size**-0.5))


def test_five_thousand_places():
    lengths = [5000, 3]
    k, v, k_cache, v_cache, pages = sequences(lengths, 12, 2, 128, torch.bfloat16)
    q = normal(2, 12, 128, seed=3, dtype=torch.bfloat16)
    got = attention_decode(q, k_cache, v_cache, decode_plan(pages, lengths), 128**-0.5)
    for i in range(2):
        check(got[i : i + 1], *attention(q[i : i + 1], k[i], v[i], 128**-0.5))
    chunk = normal(40, 12, 128, seed=4, dtype=torch.bfloat16)
    got = attention_prefill(chunk, k_cache, v_cache, prefill_plan(pages[0], 4960, 40), 128**-0.5)
    check(got, *attention(chunk, k[0], v[0], 128**-0.5))


@DTYPES
@pytest.mark.usefixtures("variant")
def test_a_row_is_the_same_in_any_batch_in_any_chunk_and_on_any_threads(on_threads, dtype):
    """Bit for bit: as a decode alone, among others, in chunks of any size, on one thread or several."""
    length, others = 800, [1, 40, 1030]
    _, _, k_cache, v_cache, pages = sequences([length, *others], 6, 2, 32, dtype)
    q = normal(length, 6, 32, seed=3, dtype=dtype)

    def chunk(past: int, rows: int) -> Tensor:
        plan = prefill_plan(pages[0], past, rows)
        return attention_prefill(q[past : past + rows], k_cache, v_cache, plan, 0.2)

    on_threads(1)
    whole = chunk(0, length)
    for threads in (1, 2, 3, 4):
        on_threads(threads)
        assert torch.equal(chunk(0, length), whole)
        for past, rows in ((0, 1), (511, 2), (255, 30), (100, 700), (799, 1)):
            assert torch.equal(chunk(past, rows), whole[past : past + rows])
        for position in (0, 15, 16, 255, 256, 257, 799):
            row = q[position : position + 1]
            alone = attention_decode(row, k_cache, v_cache, decode_plan(pages[:1], [position + 1]), 0.2)
            assert torch.equal(alone[0], whole[position])
            batch = torch.cat((q[:2], row, q[:1]))
            order, lengths = [1, 2, 0, 3], [1, 40, position + 1, 1030]
            together = attention_decode(batch, k_cache, v_cache, decode_plan([pages[i] for i in order], lengths), 0.2)
            assert torch.equal(together[2], alone[0])


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 1), (40, 1)])
@pytest.mark.usefixtures("variant")
def test_the_rows_of_a_guess_are_what_each_is_alone(heads, kv_heads, dtype, on_threads):
    """Decodes of one sequence, each a place on, share its keys: beside others, more than a tile takes, out of order."""
    _, _, k_cache, v_cache, pages = sequences([300, 40, 300], heads, kv_heads, 24, dtype)
    guess = [(0, 250 + i) for i in range(30)]
    asked = [(1, 7), *guess, (0, 281), (0, 281), (1, 8), (1, 9), (2, 10), (0, 11), (2, 12), (2, 290), (2, 291), (1, 40)]
    q = normal(len(asked), heads, 24, seed=3, dtype=dtype)
    rows = [pages[i] + [0] * (19 - len(pages[i])) for i, _ in asked]
    for threads in (1, 3):
        on_threads(threads)
        together = attention_decode(q, k_cache, v_cache, decode_plan(rows, [n for _, n in asked]), 0.2)
        for at, (i, length) in enumerate(asked):
            alone = attention_decode(q[at : at + 1], k_cache, v_cache, decode_plan(pages[i : i + 1], [length]), 0.2)
            assert torch.equal(together[at], alone[0]), (at, length)


@DTYPES
@pytest.mark.usefixtures("variant")
def test_large_scores_stay_finite(dtype):
    """Scores of +-80 with steps between runs, of which the softmax keeps the largest alone."""
    k = torch.zeros(1, 600, 16)
    k[0, :, 0] = torch.linspace(-80, 80, 600)
    for most in (0, 300, 599):
        turned = k.roll(most - 599, 1).to(dtype)
        v = normal(1, 600, 16, seed=2, dtype=dtype)
        q = torch.zeros(1, 2, 16, dtype=dtype)
        q[0, 0, 0], q[0, 1, 0] = 1, -1
        pages = pages_of([600])
        got = attention_decode(q, cache_of([turned], pages), cache_of([v], pages), decode_plan(pages, [600]), 1.0)
        assert got.isfinite().all()
        check(got, *attention(q, turned, v, 1.0))


@pytest.mark.usefixtures("variant")
def test_one_place_that_outweighs_all_others_gives_its_value():
    k = torch.zeros(1, 2, 16, 64).bfloat16()
    k[0, 1, 3] = 8
    v = normal(1, 2, 16, 64, seed=1, dtype=torch.bfloat16)
    plan = decode_plan([[0, 1]], [32])
    got = attention_decode(torch.full((1, 2, 64), 8.0).bfloat16(), k, v, plan, 1.0)
    assert torch.equal(got[0, 1], v[0, 1, 3])


@pytest.mark.usefixtures("variant")
def test_queries_may_be_views():
    _, _, k_cache, v_cache, pages = sequences([70, 20], 4, 2, 24, torch.bfloat16)
    wide = normal(2, 9, 24, seed=3, dtype=torch.bfloat16)
    plan = decode_plan(pages, [70, 20])
    got = attention_decode(wide[:, 2:6], k_cache, v_cache, plan, 0.2)
    assert torch.equal(got, attention_decode(wide[:, 2:6].contiguous(), k_cache, v_cache, plan, 0.2))
    turned = normal(2, 24, 4, seed=3, dtype=torch.bfloat16).transpose(1, 2)
    got = attention_decode(turned, k_cache, v_cache, plan, 0.2)
    assert torch.equal(got, attention_decode(turned.contiguous(), k_cache, v_cache, plan, 0.2))


def test_a_broken_sequence_spoils_no_other():
    k, v, k_cache, v_cache, pages = sequences([300, 20], 4, 2, 32, torch.bfloat16)
    k_cache[:, pages[1]], v_cache[:, pages[1]] = torch.nan, torch.inf
    q = normal(2, 4, 32, seed=3, dtype=torch.bfloat16)
    got = attention_decode(q, k_cache, v_cache, decode_plan(pages, [300, 20]), 0.2)
    check(got[:1], *attention(q[:1], k[0], v[0], 0.2))
    assert got[1].isnan().all()


def test_a_row_that_only_fills_the_batch_gives_zeros():
    _, _, k_cache, v_cache, pages = sequences([40, 20], 4, 2, 32, torch.bfloat16)
    q = normal(2, 4, 32, seed=3, dtype=torch.bfloat16)
    got = attention_decode(q, k_cache, v_cache, decode_plan(pages, [0, 20]), 0.2)
    assert (got[0] == 0).all() and got[1].isfinite().all()


def test_a_recorded_decode_reads_lengths_and_pages_anew():
    k, v, k_cache, v_cache, pages = sequences([700, 300], 4, 2, 32, torch.bfloat16)
    q = normal(2, 4, 32, seed=3, dtype=torch.bfloat16)
    plan = decode_plan(pages, [700, 1])
    recording = library.Recording(Arena())
    result = recording.run(lambda: attention_decode(q, k_cache, v_cache, plan, 0.2))
    plan.lengths_D.copy_(torch.tensor([300, 600]))
    plan.pages_DP.copy_(plan.pages_DP.flip(0))
    recording.replay()
    check(result[:1], *attention(q[:1], k[1], v[1], 0.2))
    check(result[1:], *attention(q[1:], k[0][:, :600], v[0][:, :600], 0.2))
