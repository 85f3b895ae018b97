"""What a checkpoint holds: the tensors of a model, with names, shapes and types, derived from its `config.json` alone.

Owns the shape of that knowledge: a `Tensor` stands for one name in every layer and every expert, and an `Anatomy` for
all of a model. Must not know any family (`families/`), how precisions are stored (`forms.py`), or any chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

Config = dict[str, Any]

# How tensor parallelism cuts a tensor: not at all, by output features, by input features, by query heads, by KV heads
# (copied where there are more ranks than heads), by both at once (one matrix for query, key and value), by vocabulary.
Split = Literal["whole", "rows", "columns", "heads", "kv-heads", "fused-heads", "vocabulary"]
Part = Literal["embedding", "attention", "mlp", "experts", "router", "norm", "head", "predictor"]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor, or one in each of `layers` and each of `experts`; `name` says `{layer}` and `{expert}` then.

    `shape`: as stored, [output features, input features] of a linear layer. `linear`: whether checkpoints of lower
    precision store it in that precision. `absorbed`: the up-projection of a latent, of which engines keep a second
    copy in 16 bits to attend in the latent space. `dtype`: as safetensors spells it, empty for the checkpoint's own.
    `layers` ascend.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    split: Split = "whole"
    linear: bool = False
    absorbed: bool = False
    dtype: str = ""
    layers: tuple[int, ...] = ()
    experts: int = 0

    @property
    def copies(self) -> int:
        return max(len(self.layers), 1) * max(self.experts, 1)

    @property
    def elements(self) -> int:
        return math.prod(self.shape) * self.copies

    def names(self) -> Iterator[str]:
        for layer in self.layers or (0,):
            for expert in range(max(self.experts, 1)):
                yield self.name.format(layer=layer, expert=expert)


class Latent(msgspec.Struct, frozen=True):
    """The cache of latent attention: one latent and one rotated key for all heads, and perhaps an indexer's key."""

    rank: int
    rope: int
    indexer: int = 0


class Mixture(msgspec.Struct, frozen=True):
    """Routed experts: how many, how many a token goes to, and how wide each is."""

    count: int
    per_token: int
    inner: int


class Anatomy(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A model as memory sees it. `predictor` is the number of extra layers that draft tokens; they are in `tensors`,
    with the part `predictor`, and are loaded only for speculative decoding. `notes`: what the sum leaves out.
    """

    architecture: str
    dtype: str
    hidden: int
    layers: int
    vocab: int
    context: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    shared_inner: int = 0
    latent: Latent | None = None
    mixture: Mixture | None = None
    predictor: int = 0
    tied: bool = False
    quantization: Config | None = None
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of all tensors of the checkpoint, the predictor's among them, scales not."""
        return sum(t.elements for t in self.tensors)

    @property
    def loaded_parameters(self) -> int:
        """Elements that serving needs: without the predictor."""
        return sum(t.elements for t in self.tensors if t.part != "predictor")

    @property
    def active_parameters(self) -> int:
        """Elements that one token meets, all of the embedding and of the head among them."""
        m = self.mixture
        of_experts = sum(t.elements for t in self.tensors if t.part == "experts")
        idle = of_experts - of_experts * m.per_token // m.count if m else 0
        return self.loaded_parameters - idle
