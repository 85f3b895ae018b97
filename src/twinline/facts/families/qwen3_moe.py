"""Qwen3 with experts: norms over heads, softmax router, no shared expert."""

from __future__ import annotations

from twinline.facts.families import parts
from twinline.facts.models import UnsupportedModel
from twinline.facts.tensors import Anatomy, Config, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "intermediate_size")
    heads, kv_heads, size = parts.head_sizes(config)
    number = parts.layer_count(config, "num_hidden_layers")
    layers = tuple(range(number))
    mixture = parts.mixture(
        parts.need(config, "num_experts", "num_local_experts"),
        parts.need(config, "num_experts_per_tok"),
        parts.need(config, "moe_intermediate_size"),
    )
    # As in transformers: layer i has experts if (i + 1) is a multiple of decoder_sparse_step and it is not listed.
    step = parts.count(config, 1, "decoder_sparse_step", least=1)
    plain = config.get("mlp_only_layers") or []
    if not isinstance(plain, list):
        raise UnsupportedModel(f"config.json: mlp_only_layers should be a list, not {plain!r:.60}")
    sparse = tuple(i for i in layers if (i + 1) % step == 0 and i not in plain)
    dense = tuple(i for i in layers if i not in sparse)
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
