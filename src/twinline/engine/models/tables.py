"""Where each parameter comes from: one table of names per family.

Left: our parameter, `{i}` its layer. Right: the checkpoint's tensors that make it, one above the other (rows
concatenated); with `{e}`, those of every expert, stacked. A parameter that a model does not have is not looked for. A
tensor that no table names is an error, unless it matches `UNUSED`. One tensor where others have several is all of their
rows. `TABLES` is what is supported, on one screen.
"""

from __future__ import annotations

import re

from twinline.facts.models import Family

Table = dict[str, tuple[str, ...]]

_LAYER = "model.layers.{i}."

COMMON: Table = {
    "embed.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
    "layers.{i}.input_norm.weight": (_LAYER + "input_layernorm.weight",),
    "layers.{i}.mlp_norm.weight": (_LAYER + "post_attention_layernorm.weight",),
    "layers.{i}.mlp.gate_up.weight": (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
    "layers.{i}.mlp.gate_up.bias": (_LAYER + "mlp.gate_proj.bias", _LAYER + "mlp.up_proj.bias"),
    "layers.{i}.mlp.down.weight": (_LAYER + "mlp.down_proj.weight",),
    "layers.{i}.mlp.down.bias": (_LAYER + "mlp.down_proj.bias",),
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

_HEAD_NORMS: Table = {f"layers.{{i}}.attention.{p}_norm.weight": (f"{_LAYER}self_attn.{p}_norm.weight",) for p in "qk"}

QWEN3: Table = COMMON | _MOE | _HEAD_NORMS | {
    f"layers.{{i}}.attention.{p}.{kind}": (f"{_LAYER}self_attn.{p}_proj.{kind}",)
    for p in "qkv" for kind in ("weight", "bias")
}  # fmt: skip

_MIXTRAL_MOE = _LAYER + "block_sparse_moe."
MIXTRAL: Table = LLAMA | {
    "layers.{i}.mlp.gate.weight": (_MIXTRAL_MOE + "gate.weight",),
    "layers.{i}.mlp.experts.gate_up": (_MIXTRAL_MOE + "experts.{e}.w1.weight", _MIXTRAL_MOE + "experts.{e}.w3.weight"),
    "layers.{i}.mlp.experts.down": (_MIXTRAL_MOE + "experts.{e}.w2.weight",),
}

GLM: Table = LLAMA | {
    "layers.{i}.mlp.gate_up.weight": (_LAYER + "mlp.gate_up_proj.weight",),
    "layers.{i}.after_attention.weight": (_LAYER + "post_self_attn_layernorm.weight",),
    "layers.{i}.after_mlp.weight": (_LAYER + "post_mlp_layernorm.weight",),
}

_CHATGLM_LAYER = "transformer.encoder.layers.{i}."
CHATGLM: Table = {
    "embed.weight": ("transformer.embedding.word_embeddings.weight",),
    "norm.weight": ("transformer.encoder.final_layernorm.weight",),
    "head.weight": ("transformer.output_layer.weight",),
    "layers.{i}.input_norm.weight": (_CHATGLM_LAYER + "input_layernorm.weight",),
    "layers.{i}.mlp_norm.weight": (_CHATGLM_LAYER + "post_attention_layernorm.weight",),
    "layers.{i}.mlp.gate_up.weight": (_CHATGLM_LAYER + "mlp.dense_h_to_4h.weight",),
    "layers.{i}.mlp.down.weight": (_CHATGLM_LAYER + "mlp.dense_4h_to_h.weight",),
    "layers.{i}.attention.qkv.weight": (_CHATGLM_LAYER + "self_attention.query_key_value.weight",),
    "layers.{i}.attention.qkv.bias": (_CHATGLM_LAYER + "self_attention.query_key_value.bias",),
    "layers.{i}.attention.out.weight": (_CHATGLM_LAYER + "self_attention.dense.weight",),
}

ERNIE: Table = LLAMA | _MOE | {
    "layers.{i}.mlp.gate.bias": (_LAYER + "mlp.moe_statics.e_score_correction_bias",),
}  # fmt: skip

TABLES: dict[Family, Table] = {
    "chatglm": CHATGLM,
    "deepseek": DEEPSEEK,
    "ernie": ERNIE,
    "glm": GLM,
    "llama": LLAMA,
    "mixtral": MIXTRAL,
    "qwen3": QWEN3,
}

# Vectors that a checkpoint keeps as a matrix of one row.
ONE_ROW = re.compile(r"\.moe_statics\.e_score_correction_bias$")

# The prediction layer, `{i}` the number after the last layer's; its decoder layer is named as the others are. Its
# copies of embedding and head are the model's own (DeepSeek-V3, README_WEIGHTS.md) and are not read.
PREDICTOR: Table = {
    "predictor.embedding_norm.weight": (_LAYER + "enorm.weight",),
    "predictor.hidden_norm.weight": (_LAYER + "hnorm.weight",),
    "predictor.join": (_LAYER + "eh_proj.weight",),
    "predictor.norm.weight": (_LAYER + "shared_head.norm.weight",),
}

# Tables of rotary frequencies that old exports and ChatGLM carry, ours are computed; scales for keys and values in a
# cache of 8 bits, ours has the model's dtype (AutoFP8, compressed-tensors); and ERNIE's block that drafts.
UNUSED = re.compile(
    r"\.rotary_emb\.inv_freq$|^transformer\.rotary_pos_emb\.inv_freq$|"
    r"\.self_attn\.([qkv]|kv)_(scale|zero_point)$|\.self_attn\.[kv]_proj\.output_scale$|"
    r"^model\.mtp_(block|emb_norm|hidden_norm|linear_proj)\.\d+\."
)
