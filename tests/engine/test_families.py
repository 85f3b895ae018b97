"""What a model weighs and what the engine runs are read from one configuration in one way, for every family.

Names and shapes of tensors come twice: from `facts/families/*.py:anatomy`, and from the engine's tables with the shapes
that its model declares. They must be the same for every published configuration that the package knows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from twinline.engine.models.loader import places
from twinline.engine.models.tables import ONE_ROW, TABLES
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.facts.absent import ABSENT
from twinline.facts.families import FAMILIES as WEIGHED
from twinline.facts.families import read_anatomy
from twinline.facts.model_files import bundled
from twinline.facts.models import FAMILIES, GroupedQuery, UnsupportedModel, spec_from_config

Config = dict[str, Any]
SERVED = sorted(name for name, m in bundled().items() if set(m.config["architectures"]) & set(FAMILIES))
BUFFERS = {"transformer.rotary_pos_emb.inv_freq"}


def plain(config: Config) -> Config:
    """As a bfloat16 checkpoint, with a few layers: a layer more is a layer like another."""
    fewer = {name: min(config[name], 5) for name in ("num_hidden_layers", "num_layers") if name in config}
    return {k: v for k, v in config.items() if k != "quantization_config"} | fewer


def wanted(config: Config) -> dict[str, tuple[int, ...]]:
    """The checkpoint tensors that the engine looks for, with the shape that it asks of each."""
    spec = spec_from_config(config)
    model = Transformer(Ops(("reference",), StaticFacts("cpu", torch.float32)), spec)
    parameters: dict[str, Any] = dict(model.named_parameters())
    found = {}
    for name, place in places(spec, iter(parameters)).items():
        p = parameters[place.parameter]
        rows = list(p.shape) if place.expert is None else list(p.shape[1:])
        if place.source is not None:
            rows[0] = p.pieces[place.source]
        found[name] = tuple([1, *rows] if ONE_ROW.search(name) else rows)
    return found


@pytest.mark.parametrize("name", SERVED)
def test_the_engine_loads_what_the_model_weighs(name: str) -> None:
    config = plain(bundled()[name].config)
    anatomy = read_anatomy(config)
    weighed = {n: t.shape for t in anatomy.tensors if t.part != "predictor" for n in t.names() if n not in BUFFERS}
    assert wanted(config) == weighed
    assert len({t.dtype for t in anatomy.tensors}) <= 2 and math.prod(anatomy.tensors[0].shape) > 0


def test_what_is_served_is_weighed_and_has_a_table() -> None:
    assert FAMILIES.keys() < WEIGHED.keys()
    assert all(WEIGHED[name] == file for name, file in FAMILIES.items())
    assert {spec_from_config(plain(bundled()[name].config)).family for name in SERVED} == TABLES.keys()
    assert ABSENT.keys() <= FAMILIES.keys()


# Fields that are left out.

LEAST: Config = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 32,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ROUTED: dict[str, Config] = {
    "Qwen3MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Ernie4_5_MoeForCausalLM": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "DeepseekV3ForCausalLM": {
        "n_routed_experts": 16, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "num_nextn_predict_layers": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "architecture", [name for name in FAMILIES if name != "DeepseekV2ForCausalLM" and "ChatGLM" not in name]
)
def test_a_field_left_out_means_what_the_released_class_says(architecture: str, tmp_path: Path) -> None:
    """The same spec and weights from the bare sizes as from the file that `transformers` writes out in full."""
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, architecture.replace("4_5_ForCausalLM", "4_5ForCausalLM"))
    least = LEAST | ROUTED.get(architecture, {})
    if architecture == "LlamaForCausalLM":
        least = least | {"num_key_value_heads": 32}
    if architecture == "Qwen2ForCausalLM":
        least = least | {"num_key_value_heads": 32}
    kind.config_class(**least, architectures=[architecture]).save_pretrained(tmp_path)
    full = json.loads((tmp_path / "config.json").read_text("utf-8")) | {"dtype": "bfloat16"}
    bare = least | {"architectures": [architecture]}
    assert spec_from_config(bare) == spec_from_config(full)
    assert read_anatomy(bare).tensors == read_anatomy(full).tensors


def test_a_null_head_size_is_the_quotient() -> None:
    a = spec_from_config(LEAST | {"architectures": ["Qwen3ForCausalLM"], "head_dim": None}).attention
    assert isinstance(a, GroupedQuery) and a.head_size == 2
    a = spec_from_config(LEAST | {"architectures": ["Qwen3ForCausalLM"]}).attention
    assert isinstance(a, GroupedQuery) and a.head_size == 128


# Refusals.

CHATGLM = bundled()["glm-4-9b-chat"].config
MIXTRAL = bundled()["mixtral-8x7b"].config
QWEN = bundled()["qwen3-30b-a3b"].config
GLM = bundled()["glm-4-9b-0414"].config
ERNIE = bundled()["ernie-4.5-21b-a3b"].config


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (QWEN | {"use_sliding_window": True}, "sliding-window"),
        (QWEN | {"num_experts_per_tok": 129}, "129 experts for each token"),
        (MIXTRAL | {"sliding_window": 4096}, "a sliding window of 4096 in a context of 32768"),
        (CHATGLM | {"multi_query_attention": False}, "multi_query_attention False is not supported (supported: True)"),
        ({k: v for k, v in CHATGLM.items() if k != "multi_query_attention"}, "multi_query_attention False"),
        (CHATGLM | {"rmsnorm": False}, "rmsnorm False"),
        (CHATGLM | {"original_rope": False}, "original_rope False"),
        (CHATGLM | {"post_layer_norm": False}, "post_layer_norm False"),
        (CHATGLM | {"apply_residual_connection_post_layernorm": True}, "post_layernorm True"),
        (CHATGLM | {"add_bias_linear": True}, "add_bias_linear True"),
        (CHATGLM | {"multi_query_group_num": 3}, "32 heads cannot share 3 KV heads"),
        (CHATGLM | {"rope_ratio": 0}, "rope_ratio should be a number greater than 0"),
        (CHATGLM | {"rope_ratio": 50, "_name_or_path": "THUDM/chatglm2-6b-32k"}, "divides positions"),
        (GLM | {"partial_rotary_factor": 0.04}, "5 rotated values of 128 cannot be paired"),
        (GLM | {"partial_rotary_factor": 1.5}, "192 rotated values of 128"),
        (QWEN | {"partial_rotary_factor": 0.5}, "supported for neighbouring pairs"),
        (ERNIE | {"use_bias": True}, "use_bias with experts"),
        (ERNIE | {"moe_norm_min": 0.5}, "moe_norm_min 0.5 is not supported"),
    ],
)  # fmt: skip
def test_refusals_name_the_reason(config: Config, says: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        spec_from_config(config)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_window_as_wide_as_the_context_is_none() -> None:
    assert spec_from_config(MIXTRAL | {"sliding_window": 32768}) == spec_from_config(MIXTRAL)
