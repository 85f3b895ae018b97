"""Paged caches whose unused places hold NaN, and attention over them in float64. Knows no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, PrefillPlan

PAGE = 16


def normal(*shape: int, seed: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def pages_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Pages for each sequence, in no order; page 0 is nobody's."""
    counts = [-(-length // PAGE) for length in lengths]
    free = (torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)) + 1).tolist()
    return [[free.pop() for _ in range(count)] for count in counts]


def cache_of(places: list[Tensor], pages: list[list[int]]) -> Tensor:
    """`[heads, pages, page size, size]` with each sequence's `[heads, length, size]` in its pages; NaN elsewhere."""
    heads, _, size = places[0].shape
    flat = torch.full((heads, (max(map(max, pages)) + 1) * PAGE, size), torch.nan, dtype=places[0].dtype)
    for own, rows in zip(pages, places, strict=True):
        slots = (torch.tensor(own)[:, None] * PAGE + torch.arange(PAGE)).flatten()[: rows.shape[1]]
        flat[:, slots] = rows
    return flat.view(heads, -1, PAGE, size)


def decode_plan(pages: list[list[int]], lengths: list[int]) -> DecodePlan:
    width = max(map(len, pages))
    table = torch.tensor([own + [0] * (width - len(own)) for own in pages])
    lengths_D = torch.tensor(lengths)
    blocked = torch.arange(width * PAGE) >= lengths_D[:, None]
    return DecodePlan(table, lengths_D, blocked if blocked.any() else None)


def prefill_plan(pages: list[int], past: int, rows: int) -> PrefillPlan:
    return PrefillPlan(0, rows, past, torch.tensor(pages[: -(-(past + rows) // PAGE)]))


def attention(q_THd: Tensor, k_GLd: Tensor, v_GLv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of the last T of L places in float64; and of |v|, with which errors of the weights scale."""
    rows, heads, (kv_heads, length, _) = q_THd.shape[0], q_THd.shape[1], k_GLd.shape
    k, v = (x.double().repeat_interleave(heads // kv_heads, 0) for x in (k_GLd, v_GLv))
    scores = torch.einsum("thd,hld->htl", q_THd.double(), k) * scale
    later = torch.ones(rows, length, dtype=torch.bool).triu(length - rows + 1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    exact, spread = (torch.einsum("htl,hlv->thv", weights, x) for x in (v, v.abs()))
    return exact, spread


def check(got: Tensor, exact: Tensor, spread: Tensor, inner: float = 0.0) -> None:
    """Within the rounding of the result and, in bfloat16, of every weight; and float32's errors of scores and sums.
    `inner`: relative error of values and weights from products that are rounded on the way."""
    rounding, weights = (2**-8, 2**-8 + 1e-4) if got.dtype == torch.bfloat16 else (2**-23, 2e-5)
    bound = exact.abs() * rounding + spread * (weights + inner) + 1e-30
    assert got.shape == exact.shape
    off = (got.double() - exact).abs()
    assert not off.isnan().any(), "a place that is not the sequence's was read"
    assert (off <= bound).all(), f"off by {(off / bound).max():.3g} times the bound"
