"""GLM-4-9B in Hugging Face's layout: GlmForCausalLM, and Glm4ForCausalLM (0414) with two norms more per layer."""

from __future__ import annotations

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import GroupedQuery, ModelSpec
from twinline.facts.tensors import Anatomy, Config, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "intermediate_size")
    heads, kv_heads, size = parts.head_sizes(config)
    number = parts.layer_count(config, "num_hidden_layers")
    layers = tuple(range(number))
    at = "model.layers.{layer}"
    tensors: list[Tensor] = [*parts.ends(config, hidden, known["vocab"], known["tied"])]
    tensors += parts.grouped_query(
        layers, hidden, heads, kv_heads, size, qkv_bias=bool(config.get("attention_bias", False))
    )
    tensors.append(parts.linear(f"{at}.mlp.gate_up_proj", 2 * inner, hidden, "mlp", "rows", layers))
    tensors.append(parts.linear(f"{at}.mlp.down_proj", hidden, inner, "mlp", "columns", layers))
    tensors += parts.two_norms(layers, hidden)
    if architecture == "Glm4ForCausalLM":
        tensors.append(parts.norm(f"{at}.post_self_attn_layernorm", hidden, layers))
        tensors.append(parts.norm(f"{at}.post_mlp_layernorm", hidden, layers))
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "max_position_embeddings"), heads=heads,
        kv_heads=kv_heads, head_size=size, inner=inner, tensors=tuple(tensors), **known,
    )  # fmt: skip


def spec(config: Config, architecture: str) -> ModelSpec:
    """Neighbouring values of a head's first half are rotated; the output projection never has a bias."""
    heads, kv_heads, size = parts.head_sizes(config)
    biased = bool(config.get("attention_bias", False))
    return models.decoder(
        "glm", architecture, config,
        GroupedQuery(heads, kv_heads, size, qkv_bias=biased, out_bias=False),
        models.read_rope(config, size, interleaved=True),
        after_norms=architecture == "Glm4ForCausalLM",
    )  # fmt: skip
