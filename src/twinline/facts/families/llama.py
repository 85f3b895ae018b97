"""Llama and what is built like it: Mistral, Qwen2, Qwen2.5, Qwen3 without experts."""

from __future__ import annotations

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import GroupedQuery, ModelSpec, UnsupportedModel
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


def spec(config: Config, architecture: str) -> ModelSpec:
    heads = models.need(config, "num_attention_heads")
    hidden = models.need(config, "hidden_size")
    if config.get("use_sliding_window"):
        raise UnsupportedModel("config.json: sliding-window attention is not supported")
    qwen2, qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
    if config.get("head_dim") is None and hidden % heads:
        raise UnsupportedModel(f"config.json: hidden_size {hidden} is no multiple of {heads} heads; set head_dim")
    head_size = models.count(config, "head_dim", hidden // heads)
    attention = GroupedQuery(
        heads=heads,
        kv_heads=models.count(config, "num_key_value_heads", heads),
        head_size=head_size,
        qkv_bias=qwen2 or bool(config.get("attention_bias", False)),
        out_bias=not qwen2 and bool(config.get("attention_bias", False)),
        head_norms=qwen3,
    )
    if heads % attention.kv_heads:
        raise UnsupportedModel(f"config.json: {heads} heads cannot share {attention.kv_heads} KV heads evenly")
    rope = models.read_rope(config, head_size, interleaved=False)
    if architecture == "MistralForCausalLM" and config.get("sliding_window") is not None:
        # As far as its window reaches, attention through one is attention to all.
        window = models.need(config, "sliding_window")
        config = config | {"max_position_embeddings": min(window, models.need(config, "max_position_embeddings"))}
    return models.decoder(
        "qwen3" if qwen3 else "llama", architecture, config, attention, rope, mlp_bias=bool(config.get("mlp_bias"))
    )
