"""GLM-4-9B in the layout of its first release (ChatGLM): one matrix for query, key and value, one for gate and up."""

from __future__ import annotations

from twinline.facts.families import parts
from twinline.facts.tensors import Anatomy, Config, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "ffn_hidden_size")
    known["vocab"] = vocab = parts.need(config, "padded_vocab_size", "vocab_size")
    heads = parts.need(config, "num_attention_heads")
    size = parts.count(config, hidden // heads, "kv_channels", least=1)
    kv_heads = parts.need(config, "multi_query_group_num") if config.get("multi_query_attention") else heads
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
