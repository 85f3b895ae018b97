"""The shapes that are measured: configurations as published, and the tensors that each consists of.

Owns names, shapes and the bytes that one decoded token reads. Must not know how files are written. Standard library
only: peers read it in their own environments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]
Tensor = tuple[str, tuple[int, ...]]

R1_DISTILL_QWEN_1_5B: Config = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 131072,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# 460.6 million parameters in DeepSeek-V3's architecture, 119.5 million of them read for a token.
V3_SMALL: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "vocab_size": 32000,
    "max_position_embeddings": 16384,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

V2_LITE: Config = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "vocab_size": 102400,
    "max_position_embeddings": 16384,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# For a smoke run of everything in seconds.
QWEN_SMALL: Config = R1_DISTILL_QWEN_1_5B | {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
}
V3_TINY: Config = V3_SMALL | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 4096,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "q_lora_rank": 128,
}

SHAPES: dict[str, Config] = {
    "qwen-1.5b": R1_DISTILL_QWEN_1_5B,
    "qwen-1.5b-circles": R1_DISTILL_QWEN_1_5B,
    "v3-small": V3_SMALL,
    # The whole V2-Lite is 31 GB in bfloat16: a file of its layers' exact shape, a fifth of them, is enough to compare.
    "v2-lite-5": V2_LITE | {"num_hidden_layers": 5},
    "v2-lite": V2_LITE,
    "qwen-small": QWEN_SMALL,
    "qwen-small-circles": QWEN_SMALL,
    "v3-tiny": V3_TINY,
}
CIRCLES = ("qwen-1.5b-circles", "qwen-small-circles")  # what they say goes in circles: text that can be guessed


def read_config(folder: Path) -> Config:
    return json.loads((folder / "config.json").read_text("utf-8"))


def tensors(config: Config) -> Iterator[Tensor]:
    """Every tensor of the checkpoint as Hugging Face names it, in the order of the layers."""
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in _layer(config, layer):
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def _layer(config: Config, layer: int) -> Iterator[Tensor]:
    hidden = config["hidden_size"]
    yield "input_layernorm.weight", (hidden,)
    yield from _latent(config) if "kv_lora_rank" in config else _grouped(config)
    yield "post_attention_layernorm.weight", (hidden,)
    if "n_routed_experts" in config and layer >= config["first_k_dense_replace"]:
        yield from _experts(config)
    else:
        yield from _mlp("mlp", hidden, config["intermediate_size"])


def _grouped(config: Config) -> Iterator[Tensor]:
    hidden = config["hidden_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
        yield f"self_attn.{name}_proj.weight", (rows, hidden)
        yield f"self_attn.{name}_proj.bias", (rows,)
    yield "self_attn.o_proj.weight", (hidden, hidden)


def _latent(config: Config) -> Iterator[Tensor]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    queries = heads * (config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    if (q_rank := config["q_lora_rank"]) is None:
        yield "self_attn.q_proj.weight", (queries, hidden)
    else:
        yield "self_attn.q_a_proj.weight", (q_rank, hidden)
        yield "self_attn.q_a_layernorm.weight", (q_rank,)
        yield "self_attn.q_b_proj.weight", (queries, q_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (rank + config["qk_rope_head_dim"], hidden)
    yield "self_attn.kv_a_layernorm.weight", (rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (config["qk_nope_head_dim"] + config["v_head_dim"]), rank)
    yield "self_attn.o_proj.weight", (hidden, heads * config["v_head_dim"])


def _mlp(name: str, hidden: int, inner: int) -> Iterator[Tensor]:
    yield f"{name}.gate_proj.weight", (inner, hidden)
    yield f"{name}.up_proj.weight", (inner, hidden)
    yield f"{name}.down_proj.weight", (hidden, inner)


def _experts(config: Config) -> Iterator[Tensor]:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    yield "mlp.gate.weight", (config["n_routed_experts"], hidden)
    if config["topk_method"] == "noaux_tc":
        yield "mlp.gate.e_score_correction_bias", (config["n_routed_experts"],)
    for expert in range(config["n_routed_experts"]):
        yield from _mlp(f"mlp.experts.{expert}", hidden, inner)
    yield from _mlp("mlp.shared_experts", hidden, inner * config["n_shared_experts"])


def values(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@dataclass(frozen=True)
class Read:
    """Values that one decoded token reads: those of matrices, which a precision narrows, and the rest."""

    matrices: int
    other: int

    def bytes(self, bits: float) -> float:
        """Bytes read for a token where a matrix's value takes `bits`, scales included, and all else 16."""
        return self.matrices * bits / 8 + self.other * 2


def read_of_one_token(config: Config) -> Read:
    """All tensors but the input embedding, and of the routed experts as many as a token takes."""
    matrices = other = 0.0
    for name, shape in tensors(config):
        if name == "model.embed_tokens.weight":
            continue
        share = config["num_experts_per_tok"] / config["n_routed_experts"] if ".experts." in name else 1.0
        if len(shape) == 2 and not name.endswith("mlp.gate.weight"):
            matrices += share * values(shape)
        else:
            other += share * values(shape)
    return Read(round(matrices), round(other))


def parameters(config: Config) -> int:
    return sum(values(shape) for _, shape in tensors(config))
