"""Grouped-query attention whose queries and keys are normed head by head, before they are rotated (Qwen3).

Query, key and value have a matrix each, unlike in the plain kind: a norm reads heads that lie one after the other, and
those of several rows of a fused product do not. Shape suffixes as in `ops/reference.py`.
"""

from __future__ import annotations

from torch import Tensor

from twinline.engine.models.attention import GroupedQueryAttention, RopeAt
from twinline.engine.models.parts import Linear, Norm
from twinline.engine.ops.registry import Ops
from twinline.facts.models import GroupedQuery, ModelSpec


class NormedHeads(GroupedQueryAttention):
    def projections(self, ops: Ops, spec: ModelSpec, a: GroupedQuery) -> None:
        self.q = Linear(ops, spec.hidden, a.heads * a.head_size, bias=a.qkv_bias)
        self.k = Linear(ops, spec.hidden, a.kv_heads * a.head_size, bias=a.qkv_bias)
        self.v = Linear(ops, spec.hidden, a.kv_heads * a.head_size, bias=a.qkv_bias)
        self.q_norm = Norm(ops, a.head_size, spec.norm_eps)
        self.k_norm = Norm(ops, a.head_size, spec.norm_eps)

    def project(self, x_NX: Tensor, rope: RopeAt) -> tuple[Tensor, Tensor, Tensor]:
        def turned(rows: Tensor, norm: Norm) -> Tensor:
            normed = norm(rows.view(-1, self.a.head_size)).view(len(x_NX), -1, self.a.head_size)
            return self.ops.rope(normed, *rope, self.interleaved)

        v_NGd = self.v(x_NX).view(len(x_NX), -1, self.a.head_size)
        return turned(self.q(x_NX), self.q_norm), turned(self.k(x_NX), self.k_norm), v_NGd
