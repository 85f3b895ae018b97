"""Attention kinds behind one open type: grouped-query, and multi-head latent.

A kind declares what it keeps per token (`cache_rows`) and turns a step's rows into attention outputs, decodes and
prefill chunks each by their own op. Shape suffixes as in `ops/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twinline.engine.models.parts import Linear, Norm, Part, parameter
from twinline.engine.ops.plan import Plan
from twinline.engine.ops.registry import Ops
from twinline.facts.models import GroupedQuery, Latent, ModelSpec

RopeAt = tuple[Tensor, Tensor]
LATENT_NORM_EPS = 1e-6  # the latents' norms do not follow `rms_norm_eps` in the released code


class Attention(Part):
    """`cache_rows`: for each of the layer's cache tensors, its heads and their size."""

    cache_rows: tuple[tuple[int, int], ...]

    def forward(self, x_NX: Tensor, rope: RopeAt, plan: Plan, cache: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError


def by_plan(plan: Plan, decode: Callable[[slice], Tensor], prefill: Callable[..., Tensor]) -> Tensor:
    """Runs the decodes together and each prefill chunk by itself, and puts the rows back in order."""
    parts = [] if plan.decode is None else [decode(slice(0, plan.decode.count))]
    parts += [prefill(slice(p.start, p.end), p) for p in plan.prefills]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class GroupedQueryAttention(Attention):
    def __init__(self, ops: Ops, spec: ModelSpec, a: GroupedQuery):
        super().__init__()
        self.ops, self.a, self.interleaved = ops, a, spec.rope.interleaved
        self.cache_rows = ((a.kv_heads, a.head_size),) * 2
        self.projections(ops, spec, a)
        self.out = Linear(ops, a.heads * a.head_size, spec.hidden, bias=a.out_bias)

    def projections(self, ops: Ops, spec: ModelSpec, a: GroupedQuery) -> None:
        rows, kv_rows = a.heads * a.head_size, a.kv_heads * a.head_size
        self.qkv = Linear(ops, spec.hidden, rows, kv_rows, kv_rows, bias=a.qkv_bias)

    def project(self, x_NX: Tensor, rope: RopeAt) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[N, H, d]` and keys `[N, G, d]`, rotated, and values `[N, G, d]`."""
        a = self.a
        qkv_NHd = self.qkv(x_NX).view(len(x_NX), -1, a.head_size)
        turned = self.ops.rope(qkv_NHd[:, : a.heads + a.kv_heads], *rope, self.interleaved)
        return turned[:, : a.heads], turned[:, a.heads :], qkv_NHd[:, a.heads + a.kv_heads :]

    def forward(self, x_NX: Tensor, rope: RopeAt, plan: Plan, cache: Sequence[Tensor]) -> Tensor:
        a, ops = self.a, self.ops
        q, k, v = self.project(x_NX, rope)
        ops.kv_write(cache[0], plan.slots_N, k)
        ops.kv_write(cache[1], plan.slots_N, v)
        out = by_plan(
            plan,
            lambda rows: ops.attention_decode(q[rows], *cache, plan.decode, a.scale),
            lambda rows, p: ops.attention_prefill(q[rows], *cache, p, a.scale),
        )
        return self.out(out.reshape(len(x_NX), -1))


class LatentAttention(Attention):
    """MLA: the cache keeps the normed latent and the rotated shared key, `[C + R]` values per token.

    Decode works in the latent space (W_UK folded into the query, W_UV behind the sum); prefill expands keys and values.
    """

    def __init__(self, ops: Ops, spec: ModelSpec, a: Latent):
        super().__init__()
        self.ops, self.a, self.interleaved = ops, a, spec.rope.interleaved
        self.cache_rows = ((1, a.kv_rank + a.rope),)
        width, dtype = a.heads * (a.nope + a.rope), ops.facts.dtype
        self.down = Linear(ops, spec.hidden, a.q_rank or width, a.kv_rank + a.rope, bias=a.bias and bool(a.q_rank))
        self.q_norm = Norm(ops, a.q_rank, LATENT_NORM_EPS) if a.q_rank else None
        self.q_up = Linear(ops, a.q_rank, width) if a.q_rank else None
        self.kv_norm = Norm(ops, a.kv_rank, LATENT_NORM_EPS)
        self.kv_up = parameter(a.heads * (a.nope + a.value), a.kv_rank, dtype=dtype)
        self.out = Linear(ops, a.heads * a.value, spec.hidden, bias=a.bias)

    def seal(self) -> None:
        """Splits W_UK and W_UV head by head: each head's rows are [nope | value]."""
        a = self.a
        per_head = self.kv_up.data.view(a.heads, a.nope + a.value, a.kv_rank)
        self.uk_HdC, self.uv_HvC = per_head[:, : a.nope], per_head[:, a.nope :]

    def forward(self, x_NX: Tensor, rope: RopeAt, plan: Plan, cache: Sequence[Tensor]) -> Tensor:
        a, ops, rows_all = self.a, self.ops, len(x_NX)
        q, latent, k_pe = self.down(x_NX).split([self.down_width - a.kv_rank - a.rope, a.kv_rank, a.rope], -1)
        if self.q_up is not None and self.q_norm is not None:
            q = self.q_up(self.q_norm(q))
        q_nope, q_pe = q.view(rows_all, a.heads, -1).split([a.nope, a.rope], -1)
        q_pe = ops.rope(q_pe, *rope, self.interleaved)
        k_pe = ops.rope(k_pe[:, None], *rope, self.interleaved)
        ops.kv_write(cache[0], plan.slots_N, self.kv_norm(latent)[:, None], k_pe)

        def decode(rows: slice) -> Tensor:
            q_latent = ops.mla_absorb(q_nope[rows], self.uk_HdC)
            o_latent = ops.mla_decode(q_latent, q_pe[rows], cache[0], plan.decode, a.scale)
            return ops.mla_absorb(o_latent, self.uv_HvC.transpose(1, 2))

        out = by_plan(
            plan,
            decode,
            lambda rows, p: ops.mla_prefill(q_nope[rows], q_pe[rows], cache[0], self.uk_HdC, self.uv_HvC, p, a.scale),
        )
        return self.out(out.reshape(rows_all, -1))

    @property
    def down_width(self) -> int:
        a = self.a
        return (a.q_rank or a.heads * (a.nope + a.rope)) + a.kv_rank + a.rope
