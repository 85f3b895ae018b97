"""What `quantization_config` says, for every quantiser that is read, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.facts.families import read_anatomy
from twinline.facts.forms import published
from twinline.facts.model_files import bundled
from twinline.facts.models import UnsupportedModel
from twinline.facts.quantization import Quantization, Scheme, quantization
from twinline.facts.weights import checkpoint_bytes

FOUR: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
GROUP = {"targets": ["Linear"], "input_activations": None, "weights": FOUR}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
          "config_groups": {"group_0": GROUP}}  # fmt: skip


def read(declared: object) -> Quantization | None:
    return quantization({"quantization_config": declared})


def weights(**changed: Any) -> dict[str, Any]:
    return PACKED | {"config_groups": {"group_0": GROUP | {"weights": FOUR | changed}}}


@pytest.mark.parametrize(
    ("declared", "scheme", "more"),
    [
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
         Scheme(True, 8, "block", block=(128, 128)), {}),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
         Scheme(True, 8, "block", block=(128, 128)), {"power_of_two": True}),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Scheme(True, 8, "matrix"), {"static_inputs": True}),
        (PACKED, Scheme(False, 4, "group", 64), {"kept": ("lm_head",)}),
        (weights(num_bits=8, strategy="channel", group_size=None), Scheme(False, 8, "row"), {}),
        (weights(symmetric=False, actorder="group"), Scheme(False, 4, "group", 64, zeros=True), {"ordered": True}),
        (weights(actorder="weight"), Scheme(False, 4, "group", 64), {"ordered": False}),
        (weights(type="float", num_bits=8, strategy="channel"), Scheme(True, 8, "row"), {}),
        (weights(type="float", num_bits=8, strategy="block", block_structure=[128, 128]),
         Scheme(True, 8, "block", block=(128, 128)), {}),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
         Scheme(False, 4, "group", 128, zeros=True), {"zero_offset": 1, "ordered": False}),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
         Scheme(False, 8, "row", zeros=True), {"zero_offset": 0, "ordered": True}),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*mlp.gate": {}, "-:lm_head": {}}},
         Scheme(False, 4, "group", 128, zeros=True), {}),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"},
         Scheme(False, 4, "group", 64, zeros=True), {"zero_offset": 0}),
    ],
)  # fmt: skip
def test_what_is_declared(declared: dict[str, Any], scheme: Scheme, more: dict[str, Any]) -> None:
    found = read(declared)
    assert found is not None and found.method == declared["quant_method"] and found.schemes == (scheme,)
    assert {name: getattr(found, name) for name in more} == more
    assert "\n" not in str(scheme) and str(scheme)


def test_plain_weights_declare_nothing() -> None:
    assert read(None) is read({}) is quantization({}) is None
    assert quantization({"compression_config": PACKED}) == read(PACKED)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("fp8", "should be an object"), ({"quant_method": "hqq"}, "'hqq' weights cannot be read"), ([1], "an object"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "'e5m2'"), ({"quant_method": "bitsandbytes"}, "known: fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"), ({"quant_method": "gptq", "group_size": 0}, "groups of 0"),
        ({"quant_method": "gptq", "dynamic": {"x": 1}}, "differ by module"),
        ({"quant_method": "gptq", "dynamic": {"-:x": {}, "+:y": {"bits": 8}}}, "differ by module"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv"), ({"quant_method": "awq", "bits": 8}, "8 bits"),
        (weights(num_bits=2), "int2"), (weights(strategy="token"), "compressed-tensors"),
        (weights(group_size=None), "group_size"), (PACKED | {"config_groups": {}}, "no config_groups"),
        (PACKED | {"ignore": "lm_head"}, "ignore should be a list"),
        (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
    ],
)  # fmt: skip
def test_what_is_refused(declared: Any, words: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read(declared)
    assert words in str(caught.value) and "\n" not in str(caught.value)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.text(max_size=6) | st.sampled_from(["group", "int"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["num_bits", "type", "symmetric", "strategy", "group_size", "actorder"]), ODD),
    st.dictionaries(st.sampled_from(["ignore", "config_groups", "format", "sparsity_config"]), ODD, max_size=2),
)
def test_any_of_compressed_tensors_is_read_or_refused(inner: dict[str, Any], outer: dict[str, Any]) -> None:
    config = bundled()["qwen3-8b"].config | {"quantization_config": weights(**inner) | outer}
    try:
        anatomy = read_anatomy(config)
        result: int | str = checkpoint_bytes(anatomy, published(anatomy))
    except UnsupportedModel as refusal:
        result = str(refusal)
    assert result > 0 if isinstance(result, int) else "\n" not in result and len(result) < 700


def test_modules_that_stay_plain_are_kinds_and_nothing_more() -> None:
    """`mlp.gate` is the router, not `gate_proj`; a regular expression is one."""
    config = bundled()["qwen3-235b-a22b-fp8"].config
    for kept in (["model.layers.0.mlp.gate", "lm_head"], []):
        changed = config | {"quantization_config": config["quantization_config"] | {"modules_to_not_convert": kept}}
        anatomy = read_anatomy(changed)
        form = published(anatomy)
        types = {t.name: form.type_of(t) for t in anatomy.tensors if t.name.endswith("gate_proj.weight")}
        assert types and set(types.values()) == {"F8_E4M3"}
    anatomy = read_anatomy(config | {"quantization_config": PACKED | {"ignore": ["re:.*self_attn.*", "lm_head"]}})
    form = published(anatomy)
    assert {form.type_of(t) for t in anatomy.tensors if "self_attn.q_proj" in t.name} == {"BF16"}
    assert {form.type_of(t) for t in anatomy.tensors if "up_proj" in t.name} == {"I4"}
    with pytest.raises(UnsupportedModel, match="no regular expression"):
        published(read_anatomy(config | {"quantization_config": PACKED | {"ignore": ["re:("]}}))
