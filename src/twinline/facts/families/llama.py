"""Llama and what is built like it: Mistral, Qwen2, Qwen2.5, Qwen3 without experts."""

from __future__ import annotations

from twinline.facts.families import parts
from twinline.facts.tensors import Anatomy, Config, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "intermediate_size")
    heads, kv_heads, size = parts.head_sizes(config)
    number = parts.layer_count(config, "num_hidden_layers")
    layers = tuple(range(number))
    qwen2 = architecture == "Qwen2ForCausalLM"
    biased = bool(config.get("attention_bias", False))
    tensors: list[Tensor] = [*parts.ends(config, hidden, known["vocab"], known["tied"])]
    tensors += parts.grouped_query(
        layers, hidden, heads, kv_heads, size,
        qkv_bias=qwen2 or biased, out_bias=not qwen2 and biased, head_norms=architecture == "Qwen3ForCausalLM",
    )  # fmt: skip
    at = "model.layers.{layer}.mlp"
    tensors += parts.gated(at, hidden, inner, layers)
    if config.get("mlp_bias"):
        tensors += parts.gated_biases(at, hidden, inner, layers)
    tensors += parts.two_norms(layers, hidden)
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "max_position_embeddings"), heads=heads,
        kv_heads=kv_heads, head_size=size, inner=inner, tensors=tuple(tensors), notes=_window(config), **known,
    )  # fmt: skip


def _window(config: Config) -> tuple[str, ...]:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return ()
    return (f"attention sees {window} tokens back; the cache is counted as if it saw all: an upper bound",)
