"""Random checkpoints in the exact shape of known models, for speed only: their text means nothing.

Values are drawn once per distinct shape and reused, so that making one takes seconds; kernels take the same time for
any values. Written where the caller says, and kept for the next run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

R1_DISTILL_QWEN_1_5B = {
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
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}


def qwen2(directory: Path, config: dict) -> Path:
    """A random Qwen2 checkpoint of the given configuration, in bfloat16, two shards."""
    if (directory / "model.safetensors.index.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head = hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head
    drawn: dict[tuple[int, ...], torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        if shape not in drawn:
            drawn[shape] = (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(torch.bfloat16)
        return drawn[shape]

    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    shards[0]["model.embed_tokens.weight"] = matrix(config["vocab_size"], hidden)
    shards[1]["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    shards[1]["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    for i in range(layers):
        tensors = shards[int(i >= layers // 2)]
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            tensors[f"model.layers.{i}.{name}.weight"] = matrix(rows, columns)
            if name[-6] in "qkv" and "self_attn" in name and "o_proj" not in name:
                tensors[f"model.layers.{i}.{name}.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: t.clone() for name, t in tensors.items()}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
