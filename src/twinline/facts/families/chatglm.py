"""ChatGLM3, and GLM-4-9B as first released: one matrix for query, key and value, one for gate and up."""

from __future__ import annotations

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import GroupedQuery, ModelSpec, UnsupportedModel
from twinline.facts.tensors import Anatomy, Config, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "ffn_hidden_size")
    known["vocab"] = vocab = parts.need(config, "padded_vocab_size", "vocab_size")
    heads, kv_heads, size = _heads(config, hidden)
    number = parts.layer_count(config, "num_layers", "num_hidden_layers")
    layers = tuple(range(number))
    at = "transformer.encoder.layers.{layer}"
    rows = (heads + 2 * kv_heads) * size
    tensors: list[Tensor] = [
        Tensor(
            name="transformer.embedding.word_embeddings.weight",
            shape=(vocab, hidden),
            part="embedding",
            split="vocabulary",
        ),
        # A buffer, but the published checkpoints hold it: half of a head is rotated, in pairs.
        Tensor(name="transformer.rotary_pos_emb.inv_freq", shape=(size // 4,), part="norm"),
        parts.norm(f"{at}.input_layernorm", hidden, layers),
        parts.norm(f"{at}.post_attention_layernorm", hidden, layers),
        parts.linear(f"{at}.self_attention.query_key_value", rows, hidden, "attention", "fused-heads", layers),
        parts.linear(f"{at}.self_attention.dense", hidden, heads * size, "attention", "columns", layers),
        parts.linear(f"{at}.mlp.dense_h_to_4h", 2 * inner, hidden, "mlp", "rows", layers),
        parts.linear(f"{at}.mlp.dense_4h_to_h", hidden, inner, "mlp", "columns", layers),
        parts.norm("transformer.encoder.final_layernorm", hidden),
    ]
    if config.get("add_qkv_bias") or config.get("add_bias_linear"):
        tensors.append(parts.bias(f"{at}.self_attention.query_key_value", rows, "attention", "fused-heads", layers))
    if config.get("add_bias_linear"):
        tensors.append(parts.bias(f"{at}.self_attention.dense", hidden, "attention", "whole", layers))
        tensors.append(parts.bias(f"{at}.mlp.dense_h_to_4h", 2 * inner, "mlp", "rows", layers))
        tensors.append(parts.bias(f"{at}.mlp.dense_4h_to_h", hidden, "mlp", "whole", layers))
    if not known["tied"]:
        tensors.append(
            Tensor(name="transformer.output_layer.weight", shape=(vocab, hidden), part="head", split="vocabulary")
        )
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "seq_length", "max_position_embeddings"),
        heads=heads, kv_heads=kv_heads, head_size=size, inner=inner, tensors=tuple(tensors), **known,
    )  # fmt: skip


def _heads(config: Config, hidden: int) -> tuple[int, int, int]:
    """Query heads, KV heads, values per head."""
    heads = parts.need(config, "num_attention_heads")
    size = parts.count(config, hidden // heads, "kv_channels", least=1)
    return heads, parts.need(config, "multi_query_group_num") if config.get("multi_query_attention") else heads, size


# Choices of the released code that the engine does not make, each with the value that it must have.
FIXED = {
    "multi_query_attention": True,  # else rows of query, key and value alternate head by head
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "original_rope": True,  # else halves are rotated, not neighbours
    "add_bias_linear": False,
}


def spec(config: Config, architecture: str) -> ModelSpec:
    """GLM-4's computation under ChatGLM's names: the model code of `chatglm3-6b` and `glm-4-9b` as released.

    `rope_ratio` stretches the base of the rotation. ChatGLM2-6B-32K, of the same architecture by name, divided the
    positions by it instead; nothing in its configuration but its name says so.
    """
    for name, only in FIXED.items():
        given = config.get(name, only)
        if bool(given) is not only:
            raise UnsupportedModel(f"config.json: {name} {given!r:.20} is not supported (supported: {only})")
    ratio = models.real(config, "rope_ratio", 1.0)
    if ratio != 1 and "chatglm2" in str(config.get("_name_or_path")).lower():
        raise UnsupportedModel(f"config.json: ChatGLM2 with rope_ratio {ratio:g} divides positions: not supported")
    hidden = parts.need(config, "hidden_size")
    heads, kv_heads, size = _heads(config, hidden)
    if heads % kv_heads:
        raise UnsupportedModel(f"config.json: {heads} heads cannot share {kv_heads} KV heads evenly")
    usual = config | {
        "num_hidden_layers": parts.layer_count(config, "num_layers", "num_hidden_layers"),
        "vocab_size": parts.need(config, "padded_vocab_size", "vocab_size"),
        "intermediate_size": parts.need(config, "ffn_hidden_size"),
        "max_position_embeddings": parts.need(config, "seq_length", "max_position_embeddings"),
        "rms_norm_eps": models.real(config, "layernorm_epsilon", 1e-5),
        "rope_theta": 10000.0 * ratio,
        "partial_rotary_factor": 0.5,
    }
    attention = GroupedQuery(heads, kv_heads, size, qkv_bias=bool(config.get("add_qkv_bias", False)), out_bias=False)
    return models.decoder("chatglm", architecture, usual, attention, models.read_rope(usual, size, interleaved=True))
