"""Mixtral: Llama's attention, experts named w1 (gate), w3 (up) and w2 (down)."""

from __future__ import annotations

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import GroupedQuery, ModelSpec, UnsupportedModel
from twinline.facts.tensors import Anatomy, Config, Mixture, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden = known["hidden"]
    heads, kv_heads, size = parts.head_sizes(config)
    number = parts.layer_count(config, "num_hidden_layers")
    layers = tuple(range(number))
    mixture = _mixture(config)
    at = "model.layers.{layer}.block_sparse_moe"
    tensors: list[Tensor] = [*parts.ends(config, hidden, known["vocab"], known["tied"])]
    tensors += parts.grouped_query(layers, hidden, heads, kv_heads, size)
    tensors.append(parts.router(f"{at}.gate", mixture.count, hidden, layers))
    tensors += parts.gated(
        at + ".experts.{expert}", hidden, mixture.inner, layers, "experts", experts=mixture.count,
        names=("w1", "w3", "w2"),
    )  # fmt: skip
    tensors += parts.two_norms(layers, hidden)
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "max_position_embeddings"), heads=heads,
        kv_heads=kv_heads, head_size=size, inner=0, mixture=mixture, tensors=tuple(tensors), **known,
    )  # fmt: skip


def _mixture(config: Config) -> Mixture:
    return parts.mixture(
        parts.need(config, "num_local_experts", "num_experts"),
        parts.need(config, "num_experts_per_tok"),
        parts.need(config, "intermediate_size"),
    )


def spec(config: Config, architecture: str) -> ModelSpec:
    """Every layer has experts; the weights of those chosen are always normalised, there is no field for it."""
    context, window = parts.need(config, "max_position_embeddings"), config.get("sliding_window")
    if window is not None and parts.need(config, "sliding_window") < context:
        raise UnsupportedModel(f"config.json: a sliding window of {window} in a context of {context} is not supported")
    heads, kv_heads, size = parts.head_sizes(config)
    return models.decoder(
        "mixtral", architecture, config,
        GroupedQuery(heads, kv_heads, size, qkv_bias=False, out_bias=False),
        models.read_rope(config, size, interleaved=False),
        parts.softmax_experts(_mixture(config), normalise=True),
        range(parts.layer_count(config, "num_hidden_layers")),
    )  # fmt: skip
