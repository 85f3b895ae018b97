"""DeepSeek's multi-token prediction layer: from a hidden state and the token after it, the token after that.

Architecture only. The layer has a cache of its own and shares the model's embedding, rotary table and head. Row p joins
the model's last hidden state at position p, which is the one after its last norm, with the embedding of the token at
p + 1 (DeepSeek-V3, arXiv 2412.19437, equations 21 to 23; the checkpoint joins them the other way round than the paper
writes them: embedding first). For a guess further on, the layer's own hidden state after `shared_head.norm` takes the
place of the model's. Both choices are silent when wrong: only fewer guesses hold (engines.md 3.18, 3.19).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twinline.engine.models.attention import RopeAt
from twinline.engine.models.parts import Norm, Part, parameter
from twinline.engine.ops.plan import Plan
from twinline.engine.ops.registry import Ops
from twinline.facts.models import ModelSpec
from twinline.facts.weight_form import PLAIN


class Predictor(Part):
    def __init__(self, ops: Ops, spec: ModelSpec, layer: Part):
        """`layer`: a decoder layer of the model's kind, with experts where the model has any."""
        super().__init__()
        self.ops, self.layer = ops, layer
        self.embedding_norm = Norm(ops, spec.hidden, spec.norm_eps)
        self.hidden_norm = Norm(ops, spec.hidden, spec.norm_eps)
        self.join: Any = parameter(spec.hidden, 2 * spec.hidden, dtype=ops.facts.dtype)
        self.norm = Norm(ops, spec.hidden, spec.norm_eps)
        self.of_embedding: Any = None
        self.of_hidden: Any = None

    def seal(self) -> None:
        """The joint matrix as its two halves, [embedding | hidden], never rounded to integers: their sum is what it
        gives, and a layer adds up what it is given."""
        of_embedding, of_hidden = self.join.data.chunk(2, -1)
        self.of_embedding = self.ops.linear.pack(of_embedding.contiguous(), PLAIN)
        self.of_hidden = self.ops.linear.pack(of_hidden.contiguous(), PLAIN)
        self.join = None

    def forward(
        self, embedded_NX: Tensor, previous_NX: Tensor, rope: RopeAt, plan: Plan, cache: Sequence[Tensor]
    ) -> Tensor:
        """Hidden states `[N, X]` after the layer's norm; writes the rows' keys and values to its cache."""
        x = self.ops.linear(self.embedding_norm(embedded_NX), self.of_embedding)
        residual = self.ops.linear(self.hidden_norm(previous_NX), self.of_hidden)
        x, residual = self.layer(x, residual, rope, plan, cache)
        return self.norm.after(x, residual)[0]


def without_first(embedded_NX: Tensor, positions_N: Tensor) -> Tensor:
    """The embeddings with that of position 0 left out, as vLLM runs the published layers (engines.md 3.18)."""
    return torch.where(positions_N[:, None] == 0, torch.zeros_like(embedded_NX), embedded_NX)
