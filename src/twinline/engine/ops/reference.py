"""The definition of every op, in plain PyTorch, meant to be read. Every faster provider must equal this one.

Shape suffixes: N rows of the batch, D decodes, T rows of a chunk, L context places, H heads, G KV heads, d head size,
C latent rank, R rotated size, E experts, K experts per token, I expert inner size, X hidden. Computes in float32
where a result is summed or normalised, and returns the input's dtype.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.engine.ops.quantized import Quantized, stored
from twinline.engine.ops.registry import implements
from twinline.facts.models import Experts
from twinline.facts.weight_form import PLAIN, WeightForm


@implements("embedding")
def embedding(ids_N: Tensor, table_VX: Tensor) -> Tensor:
    """Rows of a table, of whatever dtype: of a vocabulary's, or of the rotary tables by position."""
    return table_VX[ids_N]


@implements("rms_norm")
def rms_norm(x_NX: Tensor, weight_X: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight; rounded to the input's dtype before the weight, as in training."""
    x = x_NX.float()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return weight_X * normed.to(x_NX.dtype)


@implements("add_rms_norm")
def add_rms_norm(x_NX: Tensor, residual_NX: Tensor, weight_X: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream advanced by x, and its norm: `(rms_norm(residual + x), residual + x)`."""
    total = residual_NX + x_NX
    return rms_norm(total, weight_X, eps), total


@implements("linear")
class Linear:
    """x @ weight.T + bias; `weight` is `[out, in]` as in the checkpoint, and what its form leaves of it."""

    def pack(self, weight: Tensor | Quantized, form: WeightForm = PLAIN) -> Tensor:
        return stored(weight, form)

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, packed, bias)


@implements("silu_mul")
def silu_mul(gate_up_NI2: Tensor) -> Tensor:
    """silu(gate) * up, where the last dimension is [gate | up]."""
    gate, up = gate_up_NI2.chunk(2, -1)
    return F.silu(gate) * up


@implements("rope")
def rope(x_NHR: Tensor, cos_NR: Tensor, sin_NR: Tensor, interleaved: bool) -> Tensor:
    """Rotates pairs by the angle of their position. cos and sin are `[N, R/2]`, float32.

    Pairs are (2i, 2i+1) when interleaved (DeepSeek's checkpoints), else (i, i + R/2). Rounded once, at the end.
    """
    cos, sin = cos_NR[:, None], sin_NR[:, None]
    x = x_NHR.float()
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x_NHR.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_NHR.dtype)


@implements("kv_write")
def kv_write(cache: Tensor, slots_N: Tensor, *rows_NGd: Tensor) -> None:
    """Writes each row to its slot, in place. `cache` is `[G, pages, page size, d]`; rows given in several tensors lie
    side by side, their sizes adding up to d."""
    cache.flatten(1, 2)[:, slots_N] = torch.cat(rows_NGd, -1).transpose(0, 1)


def gather(cache: Tensor, pages_P: Tensor, length: int) -> Tensor:
    """The first `length` places that a list of pages holds: `[G, length, d]`."""
    return cache[:, pages_P].flatten(1, 2)[:, :length]


def _attend(q_THd: Tensor, k_GLd: Tensor, v_GLd: Tensor, scale: float) -> Tensor:
    """Causal attention of the last T of L places, in float32. H is a multiple of G; heads share in order."""
    heads, (kv_heads, length, _) = q_THd.shape[1], k_GLd.shape
    k_HLd = k_GLd.float().repeat_interleave(heads // kv_heads, 0)
    v_HLd = v_GLd.float().repeat_interleave(heads // kv_heads, 0)
    scores_HTL = torch.einsum("thd,hld->htl", q_THd.float(), k_HLd) * scale
    rows = q_THd.shape[0]
    later = torch.ones(rows, length, dtype=torch.bool, device=q_THd.device).triu(length - rows + 1)
    weights = scores_HTL.masked_fill(later, -math.inf).softmax(-1)
    return torch.einsum("htl,hld->thd", weights, v_HLd).to(q_THd.dtype)


@implements("attention_prefill")
def attention_prefill(q_THd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: PrefillPlan, scale: float) -> Tensor:
    """Attention of one sequence's chunk over its past and itself; its keys and values are already in the cache."""
    k, v = gather(k_cache, plan.pages_P, plan.total), gather(v_cache, plan.pages_P, plan.total)
    return _attend(q_THd, k, v, scale)


@implements("attention_decode", reads_values=True)
def attention_decode(q_DHd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    """Attention of one new token per sequence, each over its own past."""
    out = []
    for row, length in enumerate(plan.lengths_D.tolist()):
        k, v = gather(k_cache, plan.pages_DP[row], length), gather(v_cache, plan.pages_DP[row], length)
        out.append(_attend(q_DHd[row : row + 1], k, v, scale))
    return torch.cat(out)


@implements("mla_absorb")
def mla_absorb(x_DHI: Tensor, weight_HIO: Tensor) -> Tensor:
    """Each head's own matrix: q_nope into the latent space (W_UK), or a latent result into values (W_UV)."""
    return torch.einsum("dhi,hio->dho", x_DHI, weight_HIO)


@implements("mla_prefill")
def mla_prefill(
    q_nope_THd: Tensor, q_pe_THR: Tensor, cache: Tensor, uk_HdC: Tensor, uv_HvC: Tensor, plan: PrefillPlan, scale: float
) -> Tensor:
    """Expanded latent attention: keys [W_UK latent | rotated key], values W_UV latent (DeepSeek-V2, equations 9-19)."""
    heads, _, rank = uk_HdC.shape
    latent_LC, k_pe_LR = gather(cache, plan.pages_P, plan.total)[0].split([rank, cache.shape[-1] - rank], -1)
    k_nope = torch.einsum("lc,hdc->hld", latent_LC, uk_HdC)
    v = torch.einsum("lc,hvc->hlv", latent_LC, uv_HvC)
    k = torch.cat((k_nope, k_pe_LR.expand(heads, -1, -1)), -1)
    return _attend(torch.cat((q_nope_THd, q_pe_THR), -1), k, v, scale)


@implements("mla_decode", reads_values=True)
def mla_decode(q_latent_DHC: Tensor, q_pe_DHR: Tensor, cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    """Absorbed latent attention: one key head of [latent | rotated key], whose values are the latents. `[D, H, C]`."""
    rank, out = q_latent_DHC.shape[-1], []
    q = torch.cat((q_latent_DHC, q_pe_DHR), -1)
    for row, length in enumerate(plan.lengths_D.tolist()):
        k_1LC = gather(cache, plan.pages_DP[row], length)
        out.append(_attend(q[row : row + 1], k_1LC, k_1LC[..., :rank], scale))
    return torch.cat(out)


@implements("route")
def route(x_NX: Tensor, gate_EX: Tensor, bias_E: Tensor | None, e: Experts) -> tuple[Tensor, Tensor]:
    """Which experts each row goes to, `[N, K]`, and with what weights, `[N, K]` float32.

    Gate, scores and bias are float32: a 16-bit top-k reorders experts (engines.md 3.9, 3.14). The correction bias
    chooses but never weighs, and the weight is gathered from the unbiased score, not recovered by subtraction (3.10,
    3.11). Experts outside the kept groups are masked with -inf, because a biased score may be negative (3.12).
    """
    logits = F.linear(x_NX.float(), gate_EX.float())
    scores = logits.sigmoid() if e.score == "sigmoid" else logits.softmax(-1)
    choice = scores if bias_E is None else scores + bias_E
    if e.limit != "none" and e.groups > 1:
        grouped = choice.view(len(choice), e.groups, -1)
        best = min(2, grouped.shape[-1]) if e.limit == "top2" else 1
        kept = grouped.topk(best, -1).values.sum(-1).topk(e.groups_kept, -1).indices
        blocked = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, kept, False)
        choice = grouped.masked_fill(blocked[..., None], -math.inf).flatten(1)
    chosen_NK = choice.topk(e.per_token, -1).indices
    weights_NK = scores.gather(1, chosen_NK)
    if e.normalise:
        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
    return chosen_NK, weights_NK * e.scale


@implements("experts", reads_values=True)
class GroupedExperts:
    """Sum over each row's experts of weight * down(silu(gate(x)) * up(x)), and of `base` (what the shared experts
    give), where there is one: added up in float32 and rounded once."""

    def pack(
        self, gate_up_EIX: Tensor | Quantized, down_EXI: Tensor | Quantized, form: WeightForm = PLAIN
    ) -> tuple[Tensor, Tensor]:
        return stored(gate_up_EIX, form), stored(down_EXI, form)

    def __call__(
        self,
        x_NX: Tensor,
        packed: tuple[Tensor, Tensor],
        chosen_NK: Tensor,
        weights_NK: Tensor,
        base_NX: Tensor | None = None,
    ) -> Tensor:
        gate_up, down = packed
        out = torch.zeros_like(x_NX, dtype=torch.float32)
        for expert in chosen_NK.unique().tolist():
            row, place = (chosen_NK == expert).nonzero(as_tuple=True)
            y = F.linear(silu_mul(F.linear(x_NX[row], gate_up[expert])), down[expert])
            out.index_add_(0, row, y.float() * weights_NK[row, place, None])
        return (out if base_NX is None else out + base_NX.float()).to(x_NX.dtype)
