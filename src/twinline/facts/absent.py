"""What a field means where a `config.json` leaves it out, for architectures whose default is not everybody's.

Owns those defaults, as the released configuration classes have them (`transformers`; ChatGLM's own code). They hold for
whoever reads a configuration: for what a model weighs and for what the engine runs.
"""

from __future__ import annotations

from typing import Any

_GLM: dict[str, Any] = {
    "head_dim": 128,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,  # absent from many published files, and half of a head nevertheless (mlx-lm#1698)
}
_ERNIE: dict[str, Any] = {"rope_theta": 500000.0, "rms_norm_eps": 1e-05, "tie_word_embeddings": True}
_ERNIE_DENSE: dict[str, Any] = _ERNIE | {"head_dim": 128, "num_key_value_heads": 2}
_CHATGLM: dict[str, Any] = {"layernorm_epsilon": 1e-05, "multi_query_attention": False}

ABSENT: dict[str, dict[str, Any]] = {
    "DeepseekV3ForCausalLM": {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5},
    "Qwen3ForCausalLM": {"head_dim": 128, "num_key_value_heads": 32},
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen3MoeForCausalLM": {"num_key_value_heads": 4},
    "MixtralForCausalLM": {"num_key_value_heads": 8, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05},
    "GlmForCausalLM": _GLM,
    "Glm4ForCausalLM": _GLM,
    "ChatGLMModel": _CHATGLM,
    "ChatGLMForConditionalGeneration": _CHATGLM,
    "Ernie4_5_ForCausalLM": _ERNIE_DENSE,
    "Ernie4_5ForCausalLM": _ERNIE_DENSE,
    "Ernie4_5_MoeForCausalLM": _ERNIE
    | {
        "num_key_value_heads": 4,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
}
