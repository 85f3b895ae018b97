"""Where each parameter comes from: one table of names per family.

Left: our parameter, `{i}` its layer. Right: the checkpoint's tensors that make it, one above the other (rows
concatenated); with `{e}`, those of every expert, stacked. A parameter that a model does not have is not looked for. A
tensor that no table names is an error, unless it matches `UNUSED`.
"""

from __future__ import annotations

import re

Table = dict[str, tuple[str, ...]]

_LAYER = "model.layers.{i}."

COMMON: Table = {
    "embed.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
    "layers.{i}.input_norm.weight": (_LAYER + "input_layernorm.weight",),
    "layers.{i}.mlp_norm.weight": (_LAYER + "post_attention_layernorm.weight",),
    "layers.{i}.mlp.gate_up.weight": (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
    "layers.{i}.mlp.down.weight": (_LAYER + "mlp.down_proj.weight",),
    "layers.{i}.attention.out.weight": (_LAYER + "self_attn.o_proj.weight",),
    "layers.{i}.attention.out.bias": (_LAYER + "self_attn.o_proj.bias",),
}

LLAMA: Table = COMMON | {
    f"layers.{{i}}.attention.qkv.{kind}": tuple(f"{_LAYER}self_attn.{p}_proj.{kind}" for p in "qkv")
    for kind in ("weight", "bias")
}

_MOE: Table = {
    "layers.{i}.mlp.gate.weight": (_LAYER + "mlp.gate.weight",),
    "layers.{i}.mlp.gate.bias": (_LAYER + "mlp.gate.e_score_correction_bias",),
    "layers.{i}.mlp.experts.gate_up": (
        _LAYER + "mlp.experts.{e}.gate_proj.weight",
        _LAYER + "mlp.experts.{e}.up_proj.weight",
    ),
    "layers.{i}.mlp.experts.down": (_LAYER + "mlp.experts.{e}.down_proj.weight",),
    "layers.{i}.mlp.shared.gate_up.weight": (
        _LAYER + "mlp.shared_experts.gate_proj.weight",
        _LAYER + "mlp.shared_experts.up_proj.weight",
    ),
    "layers.{i}.mlp.shared.down.weight": (_LAYER + "mlp.shared_experts.down_proj.weight",),
}

_MLA: Table = {
    "layers.{i}.attention.q_norm.weight": (_LAYER + "self_attn.q_a_layernorm.weight",),
    "layers.{i}.attention.q_up.weight": (_LAYER + "self_attn.q_b_proj.weight",),
    "layers.{i}.attention.kv_norm.weight": (_LAYER + "self_attn.kv_a_layernorm.weight",),
    "layers.{i}.attention.kv_up": (_LAYER + "self_attn.kv_b_proj.weight",),
}

DEEPSEEK: Table = COMMON | _MOE | _MLA | {
    f"layers.{{i}}.attention.down.{kind}": tuple(
        f"{_LAYER}self_attn.{p}.{kind}" for p in ("q_a_proj", "kv_a_proj_with_mqa")
    )
    for kind in ("weight", "bias")
}  # fmt: skip

# Without a query rank (V2-Lite) the query has one matrix.
DEEPSEEK_PLAIN_QUERY: Table = DEEPSEEK | {
    "layers.{i}.attention.down.weight": tuple(
        f"{_LAYER}self_attn.{p}.weight" for p in ("q_proj", "kv_a_proj_with_mqa")
    ),
}

# The prediction layer, `{i}` the number after the last layer's; its decoder layer is named as the others are. Its
# copies of embedding and head are the model's own (DeepSeek-V3, README_WEIGHTS.md) and are not read.
PREDICTOR: Table = {
    "predictor.embedding_norm.weight": (_LAYER + "enorm.weight",),
    "predictor.hidden_norm.weight": (_LAYER + "hnorm.weight",),
    "predictor.join": (_LAYER + "eh_proj.weight",),
    "predictor.norm.weight": (_LAYER + "shared_head.norm.weight",),
}

# Tables of rotary frequencies that old exports carry; ours are computed.
UNUSED = re.compile(r"\.rotary_emb\.inv_freq$")
