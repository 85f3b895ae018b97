"""What checkpoints hold, from `config.json` alone: counts, bytes and names that others published, exactly."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.facts.families import FAMILIES, read_anatomy
from twinline.facts.forms import published
from twinline.facts.model_files import bundled
from twinline.facts.models import UnsupportedModel
from twinline.facts.tensors import Anatomy
from twinline.facts.weights import checkpoint_bytes, index

HUB = "the hub's safetensors report"


def known(name: str) -> Anatomy:
    return read_anatomy(bundled()[name].config)


# model: (elements without scales, where they were published)
PARAMETERS: dict[str, tuple[int, str]] = {
    "deepseek-v2-lite": (15_706_484_224, "chatglm.cpp, docs: its start message"),
    "deepseek-r1-distill-qwen-1.5b": (
        1_777_088_000,
        "llama.cpp's model_n_params of a GGUF; a trainer's evidence with 339 tensors",
    ),
    "deepseek-r1-distill-qwen-7b": (7_615_616_512, "tests of a size fetcher: Qwen2.5-Coder-7B-Instruct in " + HUB),
    "deepseek-r1-distill-qwen-14b": (14_770_033_664, "a federated trainer's check of Qwen2.5-14B-Instruct"),
    "deepseek-r1-distill-qwen-32b": (32_763_876_352, "a federated trainer's check of Qwen2.5-32B-Instruct"),
    "deepseek-r1-distill-llama-8b": (16_060_522_496 // 2, "transformers, docs: index of Llama-3.1-8B, BF16"),
    "deepseek-r1-distill-llama-70b": (70_553_706_496, "a listing of DeepSeek-R1-Distill-Llama-70B's GGUF"),
    "qwen2.5-0.5b": (494_032_768, "evidence of a trainer: 290 tensors"),
    "qwen3-8b": (8_190_735_360, HUB),
    "qwen3-30b-a3b": (30_532_122_624, HUB + "; a GGUF's general.parameter_count"),
    "qwen3-235b-a22b": (235_093_634_560, HUB),
    "glm-4-9b-chat": (9_399_951_360 + 32, "chatglm.cpp; a fine-tuning log that counts the buffer of 32 too"),
    "glm-4-9b-0414": (9_400_279_040, "llama.cpp's n-params of GLM-4-9B-0414"),
    "ernie-4.5-21b-a3b": (
        21_825_437_888 + 123_217_920,
        "a listing of a checkpoint (Hchnr/test, load/lite/out.txt: 3,680 tensors), and its drafting block",
    ),
    "ernie-4.5-300b-a47b": (
        299_484_163_264 + 989_888_512,
        "the same (load/safe_open.output.all.sort: 6,855 tensors), and its drafting block",
    ),
    "ernie-4.5-0.3b": (360_748_032, "a report of baidu/ERNIE-4.5-0.3B-PT, revision b565cf6c"),
    "mixtral-8x7b": (46_702_792_704, HUB),
    "qwen2.5-72b": (72_706_203_648, HUB),
    "qwen3-32b": (32_762_123_264, HUB),
    "kimi-k2": (1_026_408_232_448, "an audit of the headers of its 61 files"),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_published(name: str) -> None:
    assert known(name).parameters == PARAMETERS[name][0]


# Rounded figures of model cards.
@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("ernie-4.5-300b-a47b", 300.47, 47.93), ("kimi-k2", 1026.4, 32.9), ("qwen3-30b-a3b", 30.5, 3.35),
     ("qwen3-235b-a22b", 235.1, 22.2)],
)  # fmt: skip
def test_sizes_are_those_of_the_model_cards(name: str, billions: float, active: float) -> None:
    anatomy = known(name)
    assert anatomy.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert anatomy.active_parameters / 1e9 == pytest.approx(active, abs=0.05)


# `metadata.total_size` of published indices.
@pytest.mark.parametrize(
    ("name", "total_size"),
    [
        ("llama-3.1-8b", 16_060_522_496),
        ("llama-3.3-70b", 141_107_412_992),
        ("qwen2.5-7b", 15_231_233_024),
        ("deepseek-r1-distill-qwen-14b", 29_540_067_328),
        ("deepseek-r1-distill-qwen-32b", 65_527_752_704),
        ("qwen3-235b-a22b", 470_187_269_120),
    ],
)
def test_bytes_are_those_of_published_indices(name: str, total_size: int) -> None:
    anatomy = known(name)
    assert checkpoint_bytes(anatomy, published(anatomy)) == total_size


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("deepseek-r1-distill-qwen-1.5b", 339),
        ("qwen2.5-7b", 339),
        ("qwen2.5-0.5b", 290),
        ("deepseek-r1-distill-qwen-14b", 579),
        ("deepseek-r1-distill-qwen-32b", 771),
        ("qwen3-235b-a22b", 36_945),
    ],
)
def test_as_many_tensors_as_published_indices_list(name: str, tensors: int) -> None:
    anatomy = known(name)
    entries = list(index(anatomy, published(anatomy)))
    assert len(entries) == len({e.name for e in entries}) == tensors


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
def test_deepseek_in_fp8_by_type(name: str) -> None:
    # The hub's report: {"BF16": 3918786560, "F8_E4M3": 680571043840, "F32": 41555600}, total 684531386000.
    anatomy = known(name)
    elements: Counter[str] = Counter()
    total = 0
    for entry in index(anatomy, published(anatomy)):
        elements[entry.dtype] += math.prod(entry.shape)
        total += entry.bytes
    assert elements == {"BF16": 3_918_786_560, "F8_E4M3": 680_571_043_840, "F32": 41_555_600}
    assert total == checkpoint_bytes(anatomy, published(anatomy)) == 688_574_839_360
    # All weight files together, headers too, have 688,586,727,753 bytes: the headers are the rest.
    assert 0 < 688_586_727_753 - total < 0.0001 * total
    assert anatomy.loaded_parameters / 1e9 == pytest.approx(671.03, abs=0.01)
    assert anatomy.active_parameters / 1e9 == pytest.approx(36.62 + 129_280 * 7168 / 1e9, abs=0.01)


@pytest.mark.parametrize(
    ("name", "total"), [("deepseek-v3.2", 685_396_921_376), ("qwen3-235b-a22b-fp8", 235_107_904_512)]
)
def test_elements_with_scales_are_those_that_the_hub_counts(name: str, total: int) -> None:
    anatomy = known(name)
    assert sum(math.prod(e.shape) for e in index(anatomy, published(anatomy))) == total


# Indices that lie in public repositories; their names, read beside, were the same set.
FOUND = [
    # fetchwiki/deepcogito-cogito-v1-preview-qwen-14B
    ("deepseek-r1-distill-qwen-14b", {"vocab_size": 151_665}, 579, 29_531_895_808),
    # MiMiGame-1/Reflection-Llama-3.1-70B
    ("llama-3.3-70b", {"vocab_size": 128_262, "torch_dtype": "float32"}, 723, 282_215_219_200),
]


@pytest.mark.parametrize(("name", "changed", "tensors", "total_size"), FOUND)
def test_indices_of_models_made_from_these(name: str, changed: dict[str, Any], tensors: int, total_size: int) -> None:
    anatomy = read_anatomy(bundled()[name].config | changed)
    entries = list(index(anatomy, published(anatomy)))
    assert (len(entries), sum(e.bytes for e in entries)) == (tensors, total_size)


def test_an_index_of_deepseek_in_four_bits() -> None:
    # kvcache-ai/sglang_awq: AWQ, no drafting layer, total_size 364,589,799,936; groups of 64 give it. Its correction
    # bias has 16 bits, ours 32: 58 x 256 x 2 bytes.
    changed = {
        "num_nextn_predict_layers": 0,
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64},
    }
    anatomy = read_anatomy(bundled()["deepseek-v3"].config | changed)
    assert checkpoint_bytes(anatomy, published(anatomy)) - 58 * 256 * 2 == 364_589_799_936


@pytest.mark.parametrize(
    ("name", "loaded", "listed"),
    # Real checkpoints hold gate and up, and query, key and value, as one: 3 x 54 layers, a matrix for each expert less.
    [("ernie-4.5-21b-a3b", 21_825_437_888, 3680), ("ernie-4.5-300b-a47b", 299_484_163_264, 6855)],
)
def test_ernie_as_its_checkpoints_list_it(name: str, loaded: int, listed: int) -> None:
    anatomy = known(name)
    served = [t for t in anatomy.tensors if t.part != "predictor"]
    assert anatomy.loaded_parameters == loaded
    fused = sum(t.copies * (2 if "k_proj" in t.name else "up_proj" in t.name) for t in served)
    assert sum(t.copies for t in served) - fused == listed
    drafting = {n for t in anatomy.tensors if t.part == "predictor" for n in t.names()}
    assert len(drafting) == 12 and all(n.startswith("model.mtp_") for n in drafting)
    assert not any("experts" in n for n in drafting)


def test_the_sparse_model_adds_an_indexer_to_each_layer() -> None:
    third, sparse = known("deepseek-v3.1"), known("deepseek-v3.2")
    of_layer = 64 * 128 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168
    assert sparse.parameters - third.parameters == 62 * of_layer


def test_names_are_those_of_the_checkpoints() -> None:
    anatomy = known("deepseek-r1")
    entries = {e.name: e for e in index(anatomy, published(anatomy))}
    assert entries["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (576, 7168)
    assert entries["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 56)
    assert entries["model.layers.60.mlp.experts.255.down_proj.weight"].dtype == "F8_E4M3"
    assert entries["model.layers.61.mlp.gate.e_score_correction_bias"].dtype == "F32"
    assert entries["model.layers.61.eh_proj.weight"].dtype == entries["lm_head.weight"].dtype == "BF16"
    assert "model.layers.61.eh_proj.weight_scale_inv" not in entries
    assert "model.layers.2.mlp.gate.weight" not in entries
    glm = {e.name: e.shape for e in index(known("glm-4-9b-chat"), published(known("glm-4-9b-chat")))}
    assert glm["transformer.encoder.layers.39.self_attention.query_key_value.weight"] == (4608, 4096)
    assert glm["transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"] == (27_392, 4096)
    assert glm["transformer.rotary_pos_emb.inv_freq"] == (32,)


def test_every_bundled_model_is_read_and_says_where_it_is_from() -> None:
    assert len(bundled()) >= 25
    for name, model in bundled().items():
        assert model.name == name and "/" in model.hub and len(model.source) > 20
        anatomy = read_anatomy(model.config)
        assert 0 < anatomy.active_parameters <= anatomy.loaded_parameters <= anatomy.parameters
        assert anatomy.architecture in FAMILIES
        names = [n for t in anatomy.tensors for n in t.names()]
        assert len(names) == len(set(names)) == sum(t.copies for t in anatomy.tensors)
        assert not any("{" in n for n in names)


LLAMA: dict[str, Any] = bundled()["llama-3.1-8b"].config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "should hold one JSON object"),
        ({}, "known: DeepseekV2ForCausalLM"),
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM'"),
        ({"architectures": "LlamaForCausalLM"}, "is not known"),
        (LLAMA | {"hidden_size": None}, "hidden_size is missing"),
        (LLAMA | {"hidden_size": "4096"}, "hidden_size should be an integer"),
        (LLAMA | {"hidden_size": True}, "hidden_size should be an integer"),
        (LLAMA | {"num_hidden_layers": 10**9}, "cannot be meant"),
        (bundled()["deepseek-v3"].config | {"num_nextn_predict_layers": 2**31}, "cannot be meant"),
        (bundled()["ernie-4.5-21b-a3b"].config | {"num_nextn_predict_layers": 2**40}, "cannot be meant"),
        (bundled()["deepseek-v3"].config | {"num_experts_per_tok": 257}, "257 experts for each token"),
        (bundled()["mixtral-8x7b"].config | {"num_experts_per_tok": 9}, "where the model has 8"),
        (LLAMA | {"num_key_value_heads": 5}, "cannot share 5 KV heads"),
        (LLAMA | {"hidden_size": 4100}, "no multiple of 32 heads"),
        (LLAMA | {"quantization_config": "fp8"}, "quantization_config should be an object"),
        (bundled()["ernie-4.5-21b-a3b"].config | {"use_bias": True}, "use_bias"),
        (bundled()["qwen3-30b-a3b"].config | {"mlp_only_layers": 3}, "mlp_only_layers"),
        (bundled()["deepseek-v3"].config | {"kv_lora_rank": 0}, "kv_lora_rank should be an integer of at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(config: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        read_anatomy(config)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


FIELDS = sorted({field for model in bundled().values() for field in model.config})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**45), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def weighed(config: Any) -> int | str:
    """Bytes, or the refusal; any other error is a fault of ours."""
    try:
        anatomy = read_anatomy(config)
        return checkpoint_bytes(anatomy, published(anatomy))
    except UnsupportedModel as refusal:
        return str(refusal)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(bundled())), st.dictionaries(st.sampled_from(FIELDS), ODD, min_size=1, max_size=3))
def test_any_config_is_read_or_refused(name: str, changed: dict[str, Any]) -> None:
    result = weighed(bundled()[name].config | changed)
    assert result > 0 if isinstance(result, int) else "\n" not in result and len(result) < 700


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(
    st.sampled_from(["bits", "group_size", "weight_block_size", "modules_to_not_convert", "activation_scheme"]), ODD
), st.sampled_from(["fp8", "awq", "gptq"]))  # fmt: skip
def test_any_quantization_is_read_or_refused(declared: dict[str, Any], method: str) -> None:
    config = bundled()["qwen3-8b"].config | {"quantization_config": declared | {"quant_method": method}}
    result = weighed(config)
    assert result > 0 if isinstance(result, int) else "\n" not in result and len(result) < 700
