"""Small random checkpoints: models saved by `transformers`, and DeepSeek folders written tensor by tensor.

Owns sizes and random weights. The first kind carries its own reference (the `transformers` model); the second has the
published tensor names and any configuration a test asks for, and is judged by `oracle.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Config = dict[str, Any]
Weights = dict[str, Tensor]

# Sizes are ragged on purpose: nothing is a multiple of a tile or of a page.
_DECODER = {"vocab_size": 331, "hidden_size": 60, "intermediate_size": 92, "num_hidden_layers": 3,
            "max_position_embeddings": 512}  # fmt: skip
_GROUPED = _DECODER | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14}
_LATENT = _DECODER | {
    "moe_intermediate_size": 28, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 36,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 22, "v_head_dim": 18, "n_routed_experts": 12, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


def _yarn(mscale: float, mscale_all_dim: float) -> Config:
    return {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": mscale,
            "mscale_all_dim": mscale_all_dim, "beta_fast": 32, "beta_slow": 1,
            "original_max_position_embeddings": 128}  # fmt: skip


_STRETCHED = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_GLM = _GROUPED | {"head_dim": 20, "attention_bias": False, "tie_word_embeddings": False, "pad_token_id": None}

FAMILIES: dict[str, tuple[str, Config]] = {
    "llama": ("Llama", _GROUPED | {"tie_word_embeddings": False, "head_dim": 64}),
    "llama3-tied": ("Llama", _GROUPED | {"tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "llama3-bias": ("Llama", _GROUPED | {"tie_word_embeddings": False, "rope_parameters": _LLAMA3,
                                         "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", _DECODER | {"num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": True}),
    "v2-lite": ("DeepseekV2", _LATENT | {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
                                         "rope_parameters": _yarn(0.707, 0.707)}),
    "v2": ("DeepseekV2", _LATENT | {"q_lora_rank": 26, "topk_method": "group_limited_greedy", "n_group": 4,
                                    "topk_group": 2, "routed_scaling_factor": 16.0,
                                    "rope_parameters": _yarn(0.707, 0.707)}),
    "v3": ("DeepseekV3", _LATENT | {"q_lora_rank": 26, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
                                    "rope_parameters": _yarn(1.0, 1.0)}),
    "v3-bias": ("DeepseekV3", _LATENT | {"q_lora_rank": 26, "n_group": 4, "topk_group": 2, "attention_bias": True,
                                         "rope_parameters": _yarn(1.0, 0.707)}),
    "qwen3": ("Qwen3", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", _GROUPED | {"attention_bias": True, "rope_parameters": _STRETCHED}),
    "qwen3-moe": ("Qwen3Moe", _GROUPED | {"moe_intermediate_size": 28, "num_experts": 12, "num_experts_per_tok": 3,
                                          "norm_topk_prob": True, "mlp_only_layers": [0]}),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": None}),
    "mixtral": ("Mixtral", _GROUPED | {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 44}),
    "glm4": ("Glm4", _GLM),
    "glm4-yarn-bias": ("Glm4", _GLM | {"attention_bias": True,
                                       "rope_parameters": _STRETCHED | {"partial_rotary_factor": 0.4}}),
    "glm": ("Glm", _GLM | {"attention_bias": True, "tie_word_embeddings": True}),
    "ernie": ("Ernie4_5", _GROUPED | {"tie_word_embeddings": True}),
    "ernie-bias": ("Ernie4_5", _GROUPED | {"tie_word_embeddings": False, "use_bias": True}),
    "ernie-moe": ("Ernie4_5_Moe", _GROUPED | {"head_dim": 10, "tie_word_embeddings": True, "moe_intermediate_size": 28,
                                              "moe_num_experts": 12, "moe_k": 3, "moe_num_shared_experts": 2,
                                              "moe_layer_start_index": 1}),
    "chatglm": ("Glm", _GLM | {"attention_bias": True}),
}  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """A folder and the `transformers` model that it was saved from, in float32."""

    name: str
    folder: Path
    reference: Any
    layout: tuple[Config, Weights] | None = None
    """What the folder holds where `transformers` cannot write it."""

    @property
    def vocab(self) -> int:
        return int(self.reference.config.vocab_size)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """The reference's logits `[N, V]` of one sequence."""
        return self.reference(torch.tensor([ids])).logits[0]

    def save(self, folder: Path, **how: Any) -> Path:
        """The same weights once more, saved differently."""
        if self.layout is not None:
            return write_sharded(folder, *self.layout, shards=5)
        self.reference.save_pretrained(folder, **how)
        return folder


@torch.no_grad()
def save(name: str, folder: Path) -> Saved:
    """A random model of the family, saved by `transformers`: weights large enough that attention and routing matter."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    prefix, sizes = FAMILIES[name]
    torch.manual_seed(len(name) + sum(map(ord, name)))
    model = getattr(transformers, f"{prefix}ForCausalLM")(getattr(transformers, f"{prefix}Config")(**sizes))
    for parameter_name, p in model.named_parameters():
        if "correction" in parameter_name:
            p.uniform_(-0.1, 0.1)
        elif p.ndim > 1:
            p.normal_(0, 1.3 / p.shape[-1] ** 0.5)
        elif parameter_name.endswith("bias"):
            p.uniform_(-0.5, 0.5)
        else:
            p.uniform_(0.5, 1.5)
    for buffer_name, buffer in model.named_buffers():
        if "correction" in buffer_name:
            buffer.uniform_(-1, 1)
    model = model.float().eval()
    if name == "chatglm":
        layout = chatglm(model.config, model.state_dict())
        return Saved(name, write(folder, *layout), model, layout)
    model.save_pretrained(folder)
    return Saved(name, folder, model)


def chatglm(c: Any, tensors: Weights) -> tuple[Config, Weights]:
    """A GLM checkpoint in the layout of ChatGLM's first releases, whose code computes the same."""
    config = {
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "num_layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size, "ffn_hidden_size": c.intermediate_size, "kv_channels": c.head_dim,
        "num_attention_heads": c.num_attention_heads, "multi_query_attention": True,
        "multi_query_group_num": c.num_key_value_heads, "padded_vocab_size": c.vocab_size, "vocab_size": c.vocab_size,
        "seq_length": c.max_position_embeddings, "layernorm_epsilon": c.rms_norm_eps, "rmsnorm": True,
        "original_rope": True, "add_bias_linear": False, "add_qkv_bias": c.attention_bias, "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False, "tie_word_embeddings": False, "torch_dtype": "float32",
        "rope_ratio": c.rope_parameters["rope_theta"] / 10000,
    }  # fmt: skip
    out = {"transformer.embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
           "transformer.encoder.final_layernorm.weight": tensors["model.norm.weight"],
           "transformer.output_layer.weight": tensors["lm_head.weight"],
           "transformer.rotary_pos_emb.inv_freq": torch.ones(c.head_dim // 4)}  # fmt: skip
    for i in range(c.num_hidden_layers):
        of, to = f"model.layers.{i}.", f"transformer.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            out[f"{to}self_attention.query_key_value.{kind}"] = torch.cat(
                [tensors[f"{of}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            )
        for theirs, ours in (("self_attn.o_proj", "self_attention.dense"), ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
                             ("mlp.down_proj", "mlp.dense_4h_to_h"), ("input_layernorm",) * 2,
                             ("post_attention_layernorm",) * 2):  # fmt: skip
            out[f"{to}{ours}.weight"] = tensors[f"{of}{theirs}.weight"]
    return config, out


def rewrite(source: Path, target: Path, change: Callable[[Config], Config]) -> Path:
    """The checkpoint `source` with another `config.json`; the weights are links."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    (target / "config.json").write_text(json.dumps(change(json.loads((source / "config.json").read_text()))))
    return target


# DeepSeek folders by hand.

R1: Config = {
    "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 61, "hidden_size": 32, "intermediate_size": 44,
    "moe_intermediate_size": 20, "num_hidden_layers": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 22, "kv_lora_rank": 18,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 128, "beta_fast": 32,
                     "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    "max_position_embeddings": 256, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
    "num_nextn_predict_layers": 0, "dtype": "float32",
}  # fmt: skip
"""DeepSeek-R1's `config.json` with small sizes."""

V2_LITE: Config = R1 | {
    "architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": None, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": False, "scoring_func": "softmax", "topk_method": "greedy",
    "rope_scaling": R1["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
}  # fmt: skip

V2: Config = V2_LITE | {"q_lora_rank": 22, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0,
                        "topk_method": "group_limited_greedy"}  # fmt: skip


def has_experts(config: Config, layer: int) -> bool:
    return layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0


def weights(config: Config, seed: int = 0) -> Weights:
    """Random float32 weights under their published names, prediction layers included."""
    draw = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw) * 1.3 / columns**0.5

    def norm(size: int) -> Tensor:
        return torch.rand(size, generator=draw) + 0.5

    c, out = config, {}
    vocab, hidden = c["vocab_size"], c["hidden_size"]
    out["model.embed_tokens.weight"], out["lm_head.weight"] = matrix(vocab, hidden), matrix(vocab, hidden)
    out["model.norm.weight"] = norm(hidden)
    for i in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        p = f"model.layers.{i}."
        out |= {f"{p}{n}.weight": norm(hidden) for n in ("input_layernorm", "post_attention_layernorm")}
        out |= {f"{p}self_attn.{n}": t for n, t in _attention(c, matrix, norm).items()}
        out |= {f"{p}mlp.{n}": t for n, t in _mlp(c, i, matrix, draw).items()}
        if i >= c["num_hidden_layers"]:
            out |= {p + "eh_proj.weight": matrix(hidden, 2 * hidden), p + "shared_head.norm.weight": norm(hidden)}
            out |= {p + "enorm.weight": norm(hidden), p + "hnorm.weight": norm(hidden)}
            out[p + "embed_tokens.weight"] = out["model.embed_tokens.weight"].clone()
            out[p + "shared_head.head.weight"] = out["lm_head.weight"].clone()
    return out


def _attention(c: Config, matrix: Callable[[int, int], Tensor], norm: Callable[[int], Tensor]) -> Weights:
    hidden, heads, rank, q_rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], c["q_lora_rank"]
    width = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    if q_rank:
        out = {"q_a_proj.weight": matrix(q_rank, hidden), "q_a_layernorm.weight": norm(q_rank),
               "q_b_proj.weight": matrix(width, q_rank)}  # fmt: skip
    else:
        out = {"q_proj.weight": matrix(width, hidden)}
    return out | {
        "kv_a_proj_with_mqa.weight": matrix(rank + c["qk_rope_head_dim"], hidden),
        "kv_a_layernorm.weight": norm(rank),
        "kv_b_proj.weight": matrix(heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), rank),
        "o_proj.weight": matrix(hidden, heads * c["v_head_dim"]),
    }


def _mlp(c: Config, layer: int, matrix: Callable[[int, int], Tensor], draw: torch.Generator) -> Weights:
    def gated(prefix: str, inner: int) -> Weights:
        hidden = c["hidden_size"]
        return {f"{prefix}gate_proj.weight": matrix(inner, hidden), f"{prefix}up_proj.weight": matrix(inner, hidden),
                f"{prefix}down_proj.weight": matrix(hidden, inner)}  # fmt: skip

    if not has_experts(c, layer):
        return gated("", c["intermediate_size"])
    out = {"gate.weight": matrix(c["n_routed_experts"], c["hidden_size"])}
    if c["topk_method"] == "noaux_tc":
        out["gate.e_score_correction_bias"] = torch.rand(c["n_routed_experts"], generator=draw) * 2 - 1
    for e in range(c["n_routed_experts"]):
        out |= gated(f"experts.{e}.", c["moe_intermediate_size"])
    if c["n_shared_experts"]:
        out |= gated("shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
    return out


def write(folder: Path, config: Config, tensors: Weights) -> Path:
    """A checkpoint folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_sharded(folder: Path, config: Config, tensors: Weights, shards: int) -> Path:
    """A checkpoint folder of several files with an index; a tensor's shard is its place in name order, round robin."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n].contiguous() for n in sorted(tensors)[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
