"""Attention over the paged cache, in C++ (csrc/cpu/attention.h): decodes and chunks of prefill by one kernel.

A query's result depends on its row and its past alone: a token has the same attention, bit for bit, as a decode and in
any chunk. Shape suffixes as in `reference.py`.
"""

from __future__ import annotations

from torch import Tensor

from twinline.engine.ops.cpu.library import KINDS, call, empty, refuse
from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.engine.ops.registry import implements


def attend(
    q: Tensor,
    tail: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    value_size: int,
    plan: DecodePlan | PrefillPlan,
    scale: float,
) -> Tensor:
    """`[rows, heads, value_size]`; a query is [q | tail], a value the first `value_size` values of its place."""
    if q.stride(2) != 1:
        q = q.contiguous()
    rows, heads, size = q.shape
    kv_heads, count, page_size, key_row = k_cache.shape
    value_row = v_cache.shape[-1]
    out = empty(rows, heads, value_size, dtype=q.dtype)
    pages, lengths, sequences, chunk, length, each = (
        (plan.pages_DP, plan.lengths_D, rows, 1, 0, plan.pages_DP.shape[1])
        if isinstance(plan, DecodePlan)
        else (plan.pages_P, None, 1, rows, plan.total, 0)
    )
    call(
        "attention", q, tail, k_cache, v_cache, pages, lengths, out,
        KINDS[q.dtype], sequences, chunk, heads, kv_heads, length, each, page_size,
        size, 0 if tail is None else tail.shape[2], value_size,
        q.stride(0), q.stride(1), *((0, 0) if tail is None else (tail.stride(0), tail.stride(1))),
        key_row, count * page_size * key_row, value_row, count * page_size * value_row, scale,
    )  # fmt: skip
    return out


@implements("attention_decode", refuse=refuse)
def attention_decode(q_DHd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    return attend(q_DHd, None, k_cache, v_cache, v_cache.shape[-1], plan, scale)


@implements("attention_prefill", refuse=refuse)
def attention_prefill(q_THd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: PrefillPlan, scale: float) -> Tensor:
    return attend(q_THd, None, k_cache, v_cache, v_cache.shape[-1], plan, scale)
