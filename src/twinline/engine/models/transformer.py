"""The decoder that every family shares: embedding, layers of attention and MLP (or experts), norm, head.

Architecture only. Where a checkpoint's tensors go is said in `tables.py`; how they get there in `loader.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twinline.engine.models.attention import Attention, GroupedQueryAttention, LatentAttention, RopeAt
from twinline.engine.models.head_norms import NormedHeads
from twinline.engine.models.moe import MoE
from twinline.engine.models.parts import MLP, Embedding, Linear, Norm, Part, RopeTable
from twinline.engine.models.predictor import Predictor, without_first
from twinline.engine.ops.plan import Plan
from twinline.engine.ops.registry import OPS, Ops
from twinline.facts.models import Latent, ModelSpec

LayerCache = Sequence[Tensor]


def attention(ops: Ops, spec: ModelSpec) -> Attention:
    """The attention kind that the spec names. A new kind is a class of its own and a line here."""
    if isinstance(spec.attention, Latent):
        return LatentAttention(ops, spec, spec.attention)
    return (NormedHeads if spec.attention.head_norms else GroupedQueryAttention)(ops, spec, spec.attention)


class Layer(Part):
    """`after_attention` and `after_mlp` norm what is added to the residual stream, in the families that do."""

    def __init__(self, ops: Ops, spec: ModelSpec, index: int):
        super().__init__()
        self.input_norm = Norm(ops, spec.hidden, spec.norm_eps)
        self.attention = attention(ops, spec)
        self.mlp_norm = Norm(ops, spec.hidden, spec.norm_eps)
        if spec.experts is not None and index in spec.expert_layers:
            self.mlp: Part = MoE(ops, spec.hidden, spec.experts)
        else:
            self.mlp = MLP(ops, spec.hidden, spec.inner, bias=spec.mlp_bias)
        self.after_attention = Norm(ops, spec.hidden, spec.norm_eps) if spec.after_norms else None
        self.after_mlp = Norm(ops, spec.hidden, spec.norm_eps) if spec.after_norms else None

    def forward(
        self, x: Tensor, residual: Tensor | None, rope: RopeAt, plan: Plan, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """`x` is what the last layer adds to `residual`; returns the same pair, one layer on."""
        if residual is None:
            residual, x = x, self.input_norm(x)
        else:
            x, residual = self.input_norm.after(x, residual)
        x = self.attention(x, rope, plan, cache)
        if self.after_attention is not None:
            x = self.after_attention(x)
        x, residual = self.mlp_norm.after(x, residual)
        x = self.mlp(x)
        return x if self.after_mlp is None else self.after_mlp(x), residual


def _predictor(ops: Ops, spec: ModelSpec) -> Predictor:
    if spec.experts is not None:
        spec = dataclasses.replace(spec, expert_layers=spec.expert_layers | {spec.layers})
    return Predictor(ops, spec, Layer(ops, spec, spec.layers))


class Transformer(Part):
    def __init__(self, ops: Ops, spec: ModelSpec, *, predictor: bool = False):
        """`predictor`: with the layer that predicts the token after the next. A headless spec has no head."""
        super().__init__()
        self.spec, self.ops = spec, ops
        self.embed = Embedding(ops, spec.vocab, spec.hidden)
        self.layers = nn.ModuleList(Layer(ops, spec, i) for i in range(spec.layers))
        self.norm = Norm(ops, spec.hidden, spec.norm_eps)
        self.head = None if spec.headless else Linear(ops, spec.hidden, spec.vocab, form=ops.facts.head_weights)
        self.predictor = _predictor(ops, spec) if predictor else None
        self.rope: RopeTable | None = None

    def ready(self, context: int, device: torch.device) -> None:
        """Makes the rotary tables, once the weights are in place."""
        self.rope = RopeTable(self.ops, self.spec, context, device)

    def forward(self, ids_N: Tensor, positions_N: Tensor, plan: Plan, cache: Sequence[LayerCache]) -> Tensor:
        """Hidden states `[N, X]` of a step's rows, after the last norm; writes their keys and values to the cache."""
        assert self.rope is not None, "ready() was not called"
        rope, x = self.rope.at(positions_N), self.embed(ids_N)
        residual: Tensor | None = None
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x, residual = layer(x, residual, rope, plan, layer_cache)
        assert residual is not None, "a model has layers"
        return self.norm.after(x, residual)[0]

    def predict(
        self,
        next_ids_N: Tensor,
        previous_NX: Tensor,
        positions_N: Tensor,
        plan: Plan,
        cache: LayerCache,
        *,
        begins: bool = False,
    ) -> Tensor:
        """Hidden states `[N, X]` whose `logits` are those of position p + 2, for rows at p with the token at p + 1.

        `previous_NX` is `forward`'s result, or for a guess further on this one's. `begins`: some row is at position 0.
        """
        assert self.predictor is not None and self.rope is not None, "the model was loaded without its predictor"
        embedded = self.embed(next_ids_N)
        if begins:
            embedded = without_first(embedded, positions_N)
        return self.predictor(embedded, previous_NX, self.rope.at(positions_N), plan, cache)

    def logits(self, hidden_SX: Tensor) -> Tensor:
        """Logits `[S, vocab]` of chosen rows of `forward`'s result."""
        assert self.head is not None, "a model that gives vectors has no head"
        return self.head(hidden_SX)

    def uses(self) -> frozenset[str]:
        """The ops that some layer of this model calls."""
        unused = {"attention_prefill", "attention_decode"}
        if not isinstance(self.spec.attention, Latent):
            unused = {"mla_absorb", "mla_prefill", "mla_decode"}
        experts, routed = self.spec.experts, len(self.spec.expert_layers)
        if experts is None or not routed:
            unused |= {"route", "experts"}
        elif routed == self.spec.layers and not experts.shared_inner:
            unused.add("silu_mul")
        return frozenset(OPS) - unused

    def cache_rows(self) -> list[tuple[tuple[int, int], ...]]:
        """Per layer, heads and head size of each of its cache tensors."""
        return [layer.attention.cache_rows for layer in self.layers if isinstance(layer, Layer)]

    def predictor_rows(self) -> list[tuple[tuple[int, int], ...]]:
        """The same of the prediction layer, if there is one."""
        layers = [] if self.predictor is None else [self.predictor.layer]
        return [layer.attention.cache_rows for layer in layers if isinstance(layer, Layer)]
