"""Multi-head latent attention, in C++ (csrc/cpu/attention.h and latent.h)."""

from __future__ import annotations

from torch import Tensor

from twinline.engine.ops.cpu.attention import attend
from twinline.engine.ops.cpu.library import KINDS, call, empty, refuse
from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.engine.ops.registry import implements


@implements("mla_absorb", refuse=refuse)
def mla_absorb(x_DHI: Tensor, weight_HIO: Tensor) -> Tensor:
    rows, heads, size_in = x_DHI.shape
    size_out = weight_HIO.shape[2]
    out = empty(rows, heads, size_out, dtype=x_DHI.dtype)
    call("absorb", x_DHI, weight_HIO, out, KINDS[x_DHI.dtype], rows, heads, size_in, size_out,
         x_DHI.stride(0), x_DHI.stride(1), *weight_HIO.stride())  # fmt: skip
    return out


@implements("mla_decode", refuse=refuse)
def mla_decode(q_latent_DHC: Tensor, q_pe_DHR: Tensor, cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    return attend(q_latent_DHC, q_pe_DHR, cache, cache, q_latent_DHC.shape[2], plan, scale)


def cheaper_in_latent_space(rows: int, places: int, nope: int, value: int, rank: int) -> bool:
    """Whether absorbing W_UK and W_UV costs fewer products than making the keys and values of all places."""
    made = places * (nope + value) * rank + rows * places * (nope + value)
    absorbed = rows * (nope + value) * rank + rows * places * 2 * rank
    return absorbed < made


@implements("mla_prefill", refuse=refuse)
def mla_prefill(
    q_nope_THd: Tensor, q_pe_THR: Tensor, cache: Tensor, uk_HdC: Tensor, uv_HvC: Tensor, plan: PrefillPlan, scale: float
) -> Tensor:
    """Few rows go through the latent space as decodes do, and give the same bits, and so do those that were decodes
    before; others have keys and values made."""
    rows, heads, nope = q_nope_THd.shape
    value, rank = uv_HvC.shape[1:]
    if plan.decoded or cheaper_in_latent_space(rows, plan.total, nope, value, rank):
        q_latent = mla_absorb(q_nope_THd, uk_HdC)
        return mla_absorb(attend(q_latent, q_pe_THR, cache, cache, rank, plan, scale), uv_HvC.transpose(1, 2))
    out = empty(rows, heads, value, dtype=q_nope_THd.dtype)
    call("latent_prefill", q_nope_THd, q_pe_THR, cache, uk_HdC, uv_HvC, plan.pages_P, out,
         KINDS[out.dtype], rows, heads, plan.total, cache.shape[2], rank, nope, q_pe_THR.shape[2], value,
         q_nope_THd.stride(0), q_nope_THd.stride(1), q_pe_THR.stride(0), q_pe_THR.stride(1),
         uk_HdC.stride(0), uv_HvC.stride(0), scale)  # fmt: skip
    return out
