"""Qwen3 with experts: norms over heads, softmax router, no shared expert."""

from __future__ import annotations

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import GroupedQuery, ModelSpec, UnsupportedModel
from twinline.facts.tensors import Anatomy, Config, Mixture, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "intermediate_size")
    heads, kv_heads, size = parts.head_sizes(config)
    mixture, sparse, dense = _mixture(config)
    number = len(sparse) + len(dense)
    layers = tuple(range(number))
    biased = bool(config.get("attention_bias", False))
    at = "model.layers.{layer}.mlp"
    tensors: list[Tensor] = [*parts.ends(config, hidden, known["vocab"], known["tied"])]
    tensors += parts.grouped_query(
        layers, hidden, heads, kv_heads, size, qkv_bias=biased, out_bias=biased, head_norms=True
    )
    if dense:
        tensors += parts.gated(at, hidden, inner, dense)
    if sparse:
        tensors.append(parts.router(f"{at}.gate", mixture.count, hidden, sparse))
        tensors += parts.gated(
            at + ".experts.{expert}", hidden, mixture.inner, sparse, "experts", experts=mixture.count
        )
    tensors += parts.two_norms(layers, hidden)
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "max_position_embeddings"), heads=heads,
        kv_heads=kv_heads, head_size=size, inner=inner if dense else 0, mixture=mixture, tensors=tuple(tensors),
        **known,
    )  # fmt: skip


def _mixture(config: Config) -> tuple[Mixture, tuple[int, ...], tuple[int, ...]]:
    """The experts, the layers that have them, and those that have none.

    As in transformers: layer i has experts if (i + 1) is a multiple of decoder_sparse_step and it is not listed.
    """
    layers = range(parts.layer_count(config, "num_hidden_layers"))
    mixture = parts.mixture(
        parts.need(config, "num_experts", "num_local_experts"),
        parts.need(config, "num_experts_per_tok"),
        parts.need(config, "moe_intermediate_size"),
    )
    step = parts.count(config, 1, "decoder_sparse_step", least=1)
    plain = config.get("mlp_only_layers") or []
    if not isinstance(plain, list):
        raise UnsupportedModel(f"config.json: mlp_only_layers should be a list, not {plain!r:.60}")
    sparse = tuple(i for i in layers if (i + 1) % step == 0 and i not in plain)
    return mixture, sparse, tuple(i for i in layers if i not in sparse)


def spec(config: Config, architecture: str) -> ModelSpec:
    if config.get("use_sliding_window"):
        raise UnsupportedModel("config.json: sliding-window attention is not supported")
    heads, kv_heads, size = parts.head_sizes(config)
    biased = bool(config.get("attention_bias", False))
    mixture, sparse, _ = _mixture(config)
    return models.decoder(
        "qwen3", architecture, config,
        GroupedQuery(heads, kv_heads, size, qkv_bias=biased, out_bias=biased, head_norms=True),
        models.read_rope(config, size, interleaved=False),
        parts.softmax_experts(mixture, normalise=bool(config.get("norm_topk_prob", False))), sparse,
    )  # fmt: skip
