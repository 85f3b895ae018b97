"""Reading `config.json`: the published configurations in normal form, and clear refusals of everything else."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.facts.families import read_anatomy
from twinline.facts.model_files import bundled
from twinline.facts.models import (
    FAMILIES,
    Experts,
    GroupedQuery,
    Latent,
    ModelSpec,
    UnsupportedModel,
    read_spec,
    spec_from_config,
)

Config = dict[str, Any]

# As published on the models' pages; V3 without its `quantization_config`.
V3: Config = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "first_k_dense_replace": 3,
    "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
V2_LITE: Config = {
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1,
    "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
R1_QWEN: Config = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960,
    "max_position_embeddings": 131072, "max_window_layers": 21, "num_attention_heads": 12, "num_hidden_layers": 28,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
R1_LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
PUBLISHED = {"V3": V3, "V2-Lite": V2_LITE, "R1-Qwen-1.5B": R1_QWEN, "R1-Llama-8B": R1_LLAMA}


def refusal(config: Any) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        spec_from_config(config)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_v3() -> None:
    spec = spec_from_config(V3)
    assert (spec.family, spec.vocab, spec.hidden, spec.layers, spec.context) == ("deepseek", 129280, 7168, 61, 163840)
    assert spec.dtype == "bfloat16" and not spec.tied and spec.predictor_layers == 1
    assert spec.expert_layers == set(range(3, 61))
    a, e = spec.attention, spec.experts
    assert isinstance(a, Latent) and (a.q_rank, a.kv_rank, a.nope, a.rope, a.value) == (1536, 512, 128, 64, 128)
    assert a.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert e == Experts(256, 8, 8, 4, "sigmoid", "top2", True, True, 2.5, 2048, 2048)
    assert spec.rope.kind == "yarn" and spec.rope.interleaved and spec.rope.size == 64 and spec.rope["factor"] == 40
    assert spec.kv_values * 2 == 70272, "bytes per token in bfloat16 (engines.md 3)"


def test_v2_lite() -> None:
    spec = spec_from_config(V2_LITE)
    assert isinstance(spec.attention, Latent) and spec.attention.q_rank is None
    assert spec.experts == Experts(64, 6, 1, 1, "softmax", "none", False, False, 1.0, 1408, 2816)
    assert spec.expert_layers == set(range(1, 27))


def test_r1_distilled() -> None:
    qwen, llama = spec_from_config(R1_QWEN), spec_from_config(R1_LLAMA)
    assert qwen.attention == GroupedQuery(12, 2, 128, qkv_bias=True, out_bias=False)
    assert llama.attention == GroupedQuery(32, 8, 128, qkv_bias=False, out_bias=False)
    assert qwen.rope.kind == "default" and llama.rope.kind == "llama3" and llama.rope.theta == 500000
    assert not qwen.rope.interleaved and qwen.experts is None and qwen.expert_layers == frozenset()
    assert llama.kv_values == 2 * 8 * 128 * 32 and llama.norm_eps == 1e-5


def test_yarn_that_was_added_stretches_the_context_for_whoever_asks() -> None:
    yarn = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    added = R1_QWEN | {"max_position_embeddings": 40960} | yarn
    assert spec_from_config(added).context == read_anatomy(added).context == 131072
    assert spec_from_config(V3).context == read_anatomy(V3).context == 163840
    windowed = added | {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}
    assert spec_from_config(windowed).context == 4096, "no further than its window reaches"
    for factor in (math.nan, math.inf, 10**400):
        odd = R1_QWEN | {"rope_scaling": yarn["rope_scaling"] | {"factor": factor}}
        assert read_anatomy(odd).context == R1_QWEN["max_position_embeddings"], "it weighs what it does, however turned"


def new_spelling(config: Config) -> Config:
    """As transformers 5 saves it."""
    rest = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    rope = dict(config.get("rope_scaling") or {"rope_type": "default"})
    rope["rope_type"] = rope.pop("type", None) or rope["rope_type"]
    return rest | {"rope_parameters": {"rope_theta": config["rope_theta"], **rope}, "dtype": config["torch_dtype"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_spellings(name: str) -> None:
    assert spec_from_config(new_spelling(PUBLISHED[name])) == spec_from_config(PUBLISHED[name])


def test_yarns_flag_is_a_flag() -> None:
    """Whether its ramp begins and ends at whole dimensions: JSON's true and false, as transformers 5 has it."""

    def truncate(said: Config) -> float:
        return spec_from_config(V3 | {"rope_scaling": V3["rope_scaling"] | said}).rope["truncate"]

    assert truncate({}) == truncate({"truncate": True}) == 1 and truncate({"truncate": False}) == 0


def test_a_dtype_may_be_named_as_torch_prints_it() -> None:
    assert spec_from_config(V3 | {"torch_dtype": "torch.float16"}).dtype == "float16"


@pytest.mark.parametrize("name", PUBLISHED)
def test_extra_fields_do_not_matter(name: str) -> None:
    config = PUBLISHED[name] | {"transformers_version": "9", "auto_map": {"AutoModel": "x"}, "aux_loss_alpha": None}
    assert spec_from_config(config) == spec_from_config(PUBLISHED[name])


@pytest.mark.parametrize(
    ("base", "changes", "says"),
    [
        (V3, {"architectures": ["GPT2LMHeadModel"]}, ["architecture ['GPT2LMHeadModel']", *FAMILIES]),
        (V3, {"architectures": None}, ["architecture"]),
        (V3, {"architectures": "DeepseekV3ForCausalLM"}, ["architecture"]),
        (V3, {"hidden_size": None}, ["hidden_size", "None"]),
        (V3, {"hidden_size": 0}, ["hidden_size", "0"]),
        (V3, {"hidden_size": -1}, ["hidden_size", "-1"]),
        (V3, {"hidden_size": True}, ["hidden_size", "True"]),
        (V3, {"hidden_size": "7168"}, ["hidden_size", "'7168'"]),
        (V3, {"kv_lora_rank": None}, ["kv_lora_rank"]),
        (V3, {"vocab_size": 1.5}, ["vocab_size", "1.5"]),
        (V3, {"hidden_act": "gelu"}, ["'gelu'", "silu"]),
        (V3, {"topk_method": "sinkhorn"}, ["'sinkhorn'"]),
        (V3, {"scoring_func": "tanh"}, ["'tanh'"]),
        (V3, {"n_group": 7}, ["256 experts", "7 groups"]),
        (V3, {"rope_scaling": {"type": "longrope"}}, ["'longrope'", "yarn", "llama3"]),
        (V3, {"rope_scaling": {"type": "yarn", "factor": 4}}, ["original_max_position_embeddings"]),
        (V3, {"rope_scaling": {"type": "yarn", "factor": "four"}}, ["four"]),
        (V3, {"rope_scaling": {"type": "yarn", "factor": math.nan, "original_max_position_embeddings": 9}}, ["factor"]),
        (V3, {"rope_scaling": {"type": "yarn", "factor": math.inf, "original_max_position_embeddings": 9}}, ["factor"]),
        (V3, {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, ["full_attention"]),
        (R1_LLAMA, {"num_key_value_heads": 5}, ["32 heads", "5 KV heads"]),
        (R1_QWEN, {"use_sliding_window": True}, ["sliding-window"]),
    ],
)
def test_refusals_name_the_reason(base: Config, changes: Config, says: list[str]) -> None:
    message = refusal(base | changes)
    for words in says:
        assert words in message


@pytest.mark.parametrize("config", [None, [], "x", 3, {}, {"architectures": []}])
def test_what_is_not_a_configuration(config: Any) -> None:
    refusal(config)


# Fuzz. A field may hold anything that JSON can.

numbers = st.one_of(
    st.integers(-3, 600), st.floats(allow_subnormal=False), st.sampled_from([10**400, -(10**400), 2**63, 0, 1])
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=4), st.sampled_from(["yarn", "llama3", "silu"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "rope_type", "factor", "rope_theta", "mscale", "mscale_all_dim"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=5,
)
FUZZED = PUBLISHED | {name: m.config for name, m in bundled().items() if name.startswith(("qwen3", "mi", "glm", "er"))}
FIELDS = sorted({field for config in FUZZED.values() for field in config}
                | {"rope_parameters", "head_dim", "quantization_config", "rope_interleave", "dtype",
                   "partial_rotary_factor", "rope_ratio", "moe_norm_min", "original_rope", "sliding_window",
                   "norm_topk_prob"})  # fmt: skip


fuzzed = given(
    name=st.sampled_from(sorted(FUZZED)), changes=st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4)
)


@settings(max_examples=300, deadline=None)
@fuzzed
def test_fuzzed_fields_raise_nothing_but_a_refusal(name: str, changes: Config) -> None:
    try:
        spec_from_config(FUZZED[name] | changes)
    except UnsupportedModel as error:
        message = str(error)
    else:
        message = "none"
    assert message and "\n" not in message


@settings(max_examples=300, deadline=None, report_multiple_bugs=False)
@fuzzed
def test_fuzzed_fields_give_a_sound_spec(name: str, changes: Config) -> None:
    try:
        spec = spec_from_config(FUZZED[name] | changes)
    except UnsupportedModel:
        return
    assert_sound(spec)


IMPOSSIBLE: list[tuple[Config, str, list[Any]]] = [
    (V3, "first_k_dense_replace", ["3", []]),
    (R1_LLAMA, "hidden_size", [1, 4095]),
    (V3, "moe_layer_freq", [0, "1"]),
    (V3, "num_hidden_layers", [2**63, 10**400]),
    (V3, "rms_norm_eps", ["x", None, 10**400]),
    (V3, "rope_theta", [None, 10**400]),
    (V3, "rope_scaling", ["yarn", 4, ["yarn"]]),
    (V3, "routed_scaling_factor", ["x", None]),
    (V3, "n_routed_experts", ["256"]),
]
ACCEPTED: list[tuple[Config, str, list[Any]]] = [
    (R1_LLAMA, "head_dim", [True, "128", -8, 1.5, 127]),
    (R1_LLAMA, "num_key_value_heads", [-8, 8.0]),
    (V3, "q_lora_rank", ["x", -1, 1.5]),
    (V3, "n_routed_experts", [-8, 256.0]),
    (V3, "n_group", [-8, 8.0]),
    (V3, "topk_group", [9, "4", -4]),
    (V3, "num_experts_per_tok", [129, 257]),
    (V3, "n_shared_experts", [-1, "2", 1.5]),
    (V3, "num_nextn_predict_layers", [-1]),
    (V3, "rms_norm_eps", [math.nan, math.inf, -1.0]),
    (V3, "rope_theta", [0, -1, math.nan, math.inf]),
    (V3, "rope_scaling", [V3["rope_scaling"] | {"factor": v} for v in (-1, math.nan)]),
    (V3, "routed_scaling_factor", [math.nan]),
    (V3, "qk_rope_head_dim", [63]),
]


def each(table: list[tuple[Config, str, list[Any]]]) -> list[Any]:
    return [pytest.param(b, f, v, id=f"{f}={v!r:.12}") for b, f, values in table for v in values]


@pytest.mark.parametrize(("base", "field", "value"), each(IMPOSSIBLE))
def test_impossible_fields_are_refused(base: Config, field: str, value: Any) -> None:
    refusal(base | {field: value})


@pytest.mark.parametrize(("base", "field", "value"), each(ACCEPTED))
def test_impossible_optional_fields_are_refused(base: Config, field: str, value: Any) -> None:
    refusal(base | {field: value})


def assert_sound(spec: ModelSpec) -> None:
    """What the engine relies on without looking again."""
    counts = [spec.vocab, spec.hidden, spec.inner, spec.layers, spec.context, spec.rope.size]
    for part in (spec.attention, spec.experts):
        if part is not None:
            for f in dataclasses.fields(part):
                if str(f.type) == "int" and f.name != "shared_inner":
                    counts.append(getattr(part, f.name))
    assert all(type(n) is int and n > 0 for n in counts), spec
    reals = [spec.norm_eps, spec.rope.theta, *(v for _, v in spec.rope.scaling)]
    reals.append(spec.attention.scale)
    assert spec.rope.theta > 0 and spec.rope.size % 2 == 0, "pairs are rotated"
    a = spec.attention
    if isinstance(a, GroupedQuery):
        assert spec.rope.width == a.head_size and a.heads % a.kv_heads == 0
    else:
        assert spec.rope.width == a.rope
    assert all(type(v) is float and math.isfinite(v) for v in reals), spec
    assert spec.expert_layers <= set(range(spec.layers))
    if spec.experts is not None:
        e = spec.experts
        assert type(e.shared_inner) is int and e.shared_inner >= 0
        assert e.count % e.groups == 0 and e.groups_kept <= e.groups
        assert e.per_token <= e.groups_kept * (e.count // e.groups), "more experts wanted than the kept groups have"


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=8), anything, max_size=5))
def test_any_object_is_refused(config: Config) -> None:
    refusal(config)


# Folders.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[1, 2]", "one JSON object"),
        (b"[" * 100_000, "cannot be read"),
    ],
    ids=["empty", "cut", "not utf-8", "a list", "deep"],
)
def test_a_broken_file(text: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UnsupportedModel, match=says) as caught:
        read_spec(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"has no config\.json"):
        read_spec(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        read_spec(tmp_path)


def test_a_readable_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(V3))
    assert read_spec(tmp_path) == spec_from_config(V3)
