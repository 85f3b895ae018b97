"""The ops again, in PyTorch for whole batches: one matrix product over all decodes instead of one per sequence.

Runs on any device that PyTorch's own kernels serve. Shape suffixes as in `reference.py`; W is L rounded up to pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.engine.ops import reference
from twinline.engine.ops.plan import MOST_PLACES, DecodePlan, PrefillPlan
from twinline.engine.ops.registry import StaticFacts, implements, plain_only
from twinline.facts.models import Experts
from twinline.facts.weight_form import PLAIN, WeightForm


@implements("embedding")
def embedding(ids_N: Tensor, table_VX: Tensor) -> Tensor:
    return F.embedding(ids_N, table_VX)


@implements("rms_norm")
def rms_norm(x_NX: Tensor, weight_X: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x_NX, weight_X.shape, weight_X, eps)


@implements("add_rms_norm")
def add_rms_norm(x_NX: Tensor, residual_NX: Tensor, weight_X: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = residual_NX + x_NX
    return F.rms_norm(total, weight_X.shape, weight_X, eps), total


@implements("silu_mul")
def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


@implements("linear", refuse=plain_only)
class Linear:
    def pack(self, weight: Tensor, form: WeightForm = PLAIN) -> Tensor:
        return weight

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, packed, bias)


@implements("rope")
def rope(x_NHR: Tensor, cos_NR: Tensor, sin_NR: Tensor, interleaved: bool) -> Tensor:
    cos, sin = cos_NR[:, None], sin_NR[:, None]
    out = torch.empty_like(x_NHR)
    if interleaved:
        a, b, to_a, to_b = x_NHR[..., ::2], x_NHR[..., 1::2], out[..., ::2], out[..., 1::2]
    else:
        (a, b), (to_a, to_b) = x_NHR.chunk(2, -1), out.chunk(2, -1)
    # cos and sin are float32 and promote the products: rounded once, when they are written.
    to_a.copy_(a * cos - b * sin)
    to_b.copy_(b * cos + a * sin)
    return out


@implements("kv_write")
def kv_write(cache: Tensor, slots_N: Tensor, *rows_NGd: Tensor) -> None:
    places, at = cache.flatten(1, 2), 0
    for rows in rows_NGd:
        end = at + rows.shape[-1]
        places[..., at:end].index_copy_(1, slots_N, rows.transpose(0, 1))
        at = end


def _read(cache: Tensor, pages: Tensor) -> Tensor:
    """Whole pages of every head, for each row of `pages` `[..., P]`: `[..., G, W, d]`."""
    kv_heads, count, page_size, size = cache.shape
    places = (pages[..., None, :] + torch.arange(0, kv_heads * count, count, device=pages.device)[:, None]).flatten()
    # index_select copies a page at a time; indexing with a tensor goes value by value on CPUs.
    found = cache.view(kv_heads * count, -1).index_select(0, places)
    return found.view(*pages.shape[:-1], kv_heads, pages.shape[-1] * page_size, size)


def _causal(rows: int, past: int, device: torch.device) -> Tensor | None:
    """True where a row may look; None when PyTorch's own causal flag says the same."""
    if past == 0:
        return None
    return torch.ones(rows, past + rows, dtype=torch.bool, device=device).tril(past)


@implements("attention_prefill")
def attention_prefill(q_THd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: PrefillPlan, scale: float) -> Tensor:
    k, v = (_read(cache, plan.pages_P)[None, :, : plan.total] for cache in (k_cache, v_cache))
    q = q_THd.transpose(0, 1)[None]
    mask = _causal(q.shape[2], plan.past, q.device)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def _weights(scores: Tensor, blocked_DW: Tensor | None) -> Tensor:
    """Softmax over the context in float32; `scores` is `[D, ..., W]`."""
    scores = scores.float()
    if blocked_DW is not None:
        scores = scores.masked_fill_(blocked_DW.view(len(blocked_DW), *[1] * (scores.ndim - 2), -1), -math.inf)
    return scores.softmax(-1)


def _in_groups(plan: DecodePlan, page_size: int, attend: Callable[[Tensor | slice, DecodePlan], Tensor]) -> Tensor:
    """Runs `attend` over all decodes together, or over groups alike in length where that would copy too much."""
    if plan.pages_DP.numel() * page_size <= MOST_PLACES:
        return attend(slice(None), plan)
    order = plan.lengths_D.argsort()
    lengths, parts, at = plan.lengths_D[order].tolist(), [], 0
    while at < len(lengths):
        end = at + 1
        while end < len(lengths) and (end + 1 - at) * lengths[end] <= MOST_PLACES:
            end += 1
        rows, width = order[at:end], -(-lengths[end - 1] // page_size)
        lengths_D = plan.lengths_D[rows]
        blocked = torch.arange(width * page_size, device=rows.device) >= lengths_D[:, None]
        parts.append(attend(rows, DecodePlan(plan.pages_DP[rows, :width], lengths_D, blocked)))
        at = end
    return torch.cat(parts)[order.argsort()]


@implements("attention_decode", gathers=True)
def attention_decode(q_DHd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    def attend(rows: Tensor | slice, part: DecodePlan) -> Tensor:
        return _attention_decode(q_DHd[rows], k_cache, v_cache, part, scale)

    return _in_groups(plan, k_cache.shape[2], attend)


def _attention_decode(q_DHd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    decodes, heads, size = q_DHd.shape
    kv_heads = k_cache.shape[0]
    k_DGWd, v_DGWd = _read(k_cache, plan.pages_DP), _read(v_cache, plan.pages_DP)
    q = (q_DHd * scale).view(decodes, kv_heads, heads // kv_heads, size)
    weights = _weights(q @ k_DGWd.transpose(2, 3), plan.blocked_DL)
    return (weights.to(q.dtype) @ v_DGWd).view(decodes, heads, size)


@implements("mla_absorb")
def mla_absorb(x_DHI: Tensor, weight_HIO: Tensor) -> Tensor:
    return torch.bmm(x_DHI.transpose(0, 1), weight_HIO).transpose(0, 1)


@implements("mla_prefill")
def mla_prefill(
    q_nope_THd: Tensor, q_pe_THR: Tensor, cache: Tensor, uk_HdC: Tensor, uv_HvC: Tensor, plan: PrefillPlan, scale: float
) -> Tensor:
    heads, _, rank = uk_HdC.shape
    latent_LC, k_pe_LR = _read(cache, plan.pages_P)[0, : plan.total].split([rank, cache.shape[-1] - rank], -1)
    k_nope_HLd = latent_LC @ uk_HdC.transpose(1, 2)
    v_HLv = latent_LC @ uv_HvC.transpose(1, 2)
    k = torch.cat((k_nope_HLd, k_pe_LR.expand(heads, -1, -1)), -1)
    q = torch.cat((q_nope_THd, q_pe_THR), -1).transpose(0, 1)
    mask = _causal(q.shape[1], plan.past, q.device)
    # The fast CPU kernel wants values as wide as keys (engines.md 3.5).
    wide = F.pad(v_HLv, (0, max(0, q.shape[-1] - v_HLv.shape[-1])))
    out = F.scaled_dot_product_attention(q[None], k[None], wide[None], mask, is_causal=mask is None, scale=scale)
    return out[0, ..., : v_HLv.shape[-1]].transpose(0, 1)


@implements("mla_decode", gathers=True)
def mla_decode(q_latent_DHC: Tensor, q_pe_DHR: Tensor, cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    q_DHC = torch.cat((q_latent_DHC, q_pe_DHR), -1) * scale
    rank = q_latent_DHC.shape[-1]
    return _in_groups(plan, cache.shape[2], lambda rows, part: _mla_decode(q_DHC[rows], cache, part, rank))


def _mla_decode(q: Tensor, cache: Tensor, plan: DecodePlan, rank: int) -> Tensor:
    k_DWC = _read(cache, plan.pages_DP)[:, 0]
    weights = _weights(q @ k_DWC.transpose(1, 2), plan.blocked_DL)
    # Over the whole rows, the few rotated columns too: a slice of the rows would be copied first.
    return (weights.to(q.dtype) @ k_DWC)[..., :rank]


@implements("route")
def route(x_NX: Tensor, gate_EX: Tensor, bias_E: Tensor | None, e: Experts) -> tuple[Tensor, Tensor]:
    """The definition is for whole batches already."""
    return reference.route(x_NX, gate_EX, bias_E, e)


def _plain_layers(facts: StaticFacts) -> str | None:
    return None if facts.weights.kind == "plain" else f"no {facts.weights} weights"


@implements("experts", refuse=_plain_layers, reads_values=True)
class GroupedExperts:
    """Rows sorted by expert, one product per expert that has rows."""

    def pack(
        self, gate_up_EIX: Tensor, down_EXI: Tensor, form: WeightForm = PLAIN
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return gate_up_EIX.unbind(), down_EXI.unbind()

    def __call__(
        self, x_NX: Tensor, packed: tuple, chosen_NK: Tensor, weights_NK: Tensor, base_NX: Tensor | None = None
    ) -> Tensor:
        gate_up, down = packed
        rows, per_row = chosen_NK.shape
        order = chosen_NK.flatten().argsort()
        counts = chosen_NK.flatten().bincount(minlength=len(down)).tolist()
        row = order // per_row if rows > 1 else torch.zeros_like(order)
        sorted_x, parts, at = x_NX[row], [], 0
        for expert, count in enumerate(counts):
            if count:
                inner = silu_mul(F.linear(sorted_x[at : at + count], gate_up[expert]))
                parts.append(F.linear(inner, down[expert]))
                at += count
        scaled = torch.cat(parts).float() * weights_NK.flatten()[order, None]
        out = torch.zeros(x_NX.shape, dtype=torch.float32, device=x_NX.device).index_add_(0, row, scaled)
        return (out if base_NX is None else out + base_NX.float()).to(x_NX.dtype)
