"""Bytes of forms, of cuts and of the cache: exact where the layout is published, in order everywhere."""

from __future__ import annotations

import math

import pytest

from twinline.facts.chips import load
from twinline.facts.families import read_anatomy
from twinline.facts.forms import FORMS, find_form, published
from twinline.facts.layouts import Layout, impossible, parse_layout, possible, stages
from twinline.facts.memory import (
    CACHE_FORMS,
    activations,
    cache_bytes,
    communication,
    expert_workspace,
    logits,
    runtime,
)
from twinline.facts.model_files import bundled
from twinline.facts.models import UnsupportedModel
from twinline.facts.suits import suits
from twinline.facts.tensors import Anatomy
from twinline.facts.weights import checkpoint_bytes, held

ONE = Layout()


def known(name: str) -> Anatomy:
    return read_anatomy(bundled()[name].config)


def token(name: str, cache: str = "bf16", layout: Layout = ONE) -> int:
    anatomy = known(name)
    return cache_bytes(anatomy, CACHE_FORMS[cache], layout, anatomy.layers)


@pytest.mark.parametrize(
    ("name", "in_bytes"),
    [
        ("deepseek-v3", 70_272),
        ("deepseek-r1", 70_272),
        ("deepseek-v2-lite", 27 * 576 * 2),
        ("deepseek-r1-distill-qwen-1.5b", 28_672),
        ("deepseek-r1-distill-qwen-7b", 57_344),
        ("deepseek-r1-distill-llama-8b", 131_072),
        ("deepseek-r1-distill-qwen-14b", 196_608),
        ("deepseek-r1-distill-qwen-32b", 262_144),
        ("deepseek-r1-distill-llama-70b", 327_680),
        ("qwen3-30b-a3b", 98_304),
        ("qwen3-235b-a22b", 192_512),
        ("glm-4-9b-chat", 40_960),
        ("glm-4-9b-0414", 40_960),
        ("ernie-4.5-0.3b", 18_432),
        ("ernie-4.5-21b-a3b", 57_344),
    ],
)
def test_cache_of_one_token_is_exact(name: str, in_bytes: int) -> None:
    assert token(name) == in_bytes


def test_the_published_sparse_cache() -> None:
    # 512 + 4 x 4 + 64 x 2 = 656 bytes a layer for the core, 128 + 4 for the indexer.
    assert token("deepseek-v3.2", "fp8") == 61 * (656 + 132) == 48_068
    assert token("deepseek-v3", "fp8") == 61 * 576


def test_latent_caches_are_copied_on_every_rank_and_others_are_cut() -> None:
    for ranks in (2, 8, 16):
        assert token("deepseek-r1", layout=Layout(tensor=ranks)) == 70_272
    assert token("deepseek-r1-distill-llama-70b", layout=Layout(tensor=8)) == 327_680 // 8
    assert token("deepseek-r1-distill-llama-70b", layout=Layout(tensor=16)) == 327_680 // 8  # 8 KV heads: copied
    assert token("glm-4-9b-chat", layout=Layout(tensor=4)) == 40_960 // 2


def test_bytes_of_each_form_of_a_known_matrix() -> None:
    shape = (300, 1000)
    size = {name: form.matrices.bytes(shape) for name, form in FORMS.items() if form.matrices}
    assert size["fp8"] == 300_000 + 3 * 8 * 4
    assert size["int8"] == 300_000 + 300 * (4 + 4)
    assert size["int4"] == math.ceil(150_000 + 300 * 8 * (2 + 0.5))
    assert size["fp4"] == 150_000 + 300 * 63 + 8


def test_forms_of_deepseek_in_gigabytes() -> None:
    # planning: BF16 1,342, FP8 and INT8 about 671, 4-bit experts beside 8 bits about 364, all without the predictor.
    anatomy = known("deepseek-r1")
    gigabytes = {name: sum(form.bytes(t, t.shape) * t.copies for t in anatomy.tensors if t.part != "predictor") / 1e9
                 for name, form in FORMS.items()}  # fmt: skip
    assert gigabytes["bf16"] == pytest.approx(1342, rel=0.001)
    assert gigabytes["fp8"] == pytest.approx(671, rel=0.01)
    assert gigabytes["int8"] == pytest.approx(671, rel=0.01)
    assert gigabytes["w4a8"] == pytest.approx(364, rel=0.05)
    assert gigabytes["int4"] < gigabytes["fp4"] < gigabytes["fp8"] < gigabytes["bf16"] < gigabytes["fp32"]


@pytest.mark.parametrize("name", sorted(bundled()))
def test_cut_weights_hold_every_element_and_not_much_more(name: str) -> None:
    anatomy, form = known(name), FORMS["bf16"]
    loaded = sum(form.bytes(t, t.shape) * t.copies for t in anatomy.tensors if t.part != "predictor")
    alone = held(anatomy, form, ONE)[0]
    assert alone.bytes == loaded
    for devices in (2, 4, 8):
        for layout in possible(anatomy, form, devices, 8):
            ranks = held(anatomy, form, layout)
            assert len(ranks) == layout.pipeline and sum(r.layers for r in ranks) == anatomy.layers
            everywhere = sum(rank.bytes for rank in ranks) * layout.tensor * layout.data
            assert everywhere >= loaded
            if layout.data == 1 and not layout.expert_parallel:
                # What is copied: norms, routers, down-projections to latents, KV heads past their number, a tied head.
                copied = 0.02 * loaded if anatomy.latent else 0.15 * loaded
                limit = loaded + copied * devices + (0.35 * loaded if anatomy.tied else 0)
                assert everywhere <= limit


def test_experts_are_cut_or_spread() -> None:
    anatomy, form = known("deepseek-r1"), FORMS["fp8"]
    expert = 3 * 7168 * 2048
    scales = 3 * 56 * 16 * 4
    for layout, each in (
        (Layout(tensor=8), 32 * 58),
        (Layout(tensor=8, expert_parallel=True), 32 * 58),
        (Layout(tensor=1, data=32, expert_parallel=True), 8 * 58),
        (Layout(tensor=1, data=320 // 2, expert_parallel=True), 2 * 58),  # 160 devices: some have 2, some 1
    ):
        assert held(anatomy, form, layout)[0].parts["experts"] == (expert + scales) * each
    # Attention is whole on each device of attention-parallel groups.
    cut, whole = (held(anatomy, form, x)[0].parts["attention"] for x in (Layout(tensor=8), ONE))
    groups = held(anatomy, form, Layout(data=8, expert_parallel=True))[0].parts["attention"]
    assert cut < whole / 4 and groups == whole


def test_the_second_copy_of_the_latent_up_projection() -> None:
    anatomy = known("deepseek-r1")
    copy = held(anatomy, FORMS["fp8"], Layout(tensor=8))[0].absorbed
    assert copy == 61 * 2 * 512 * 128 * (128 + 128) // 8


def test_layouts_that_cannot_be_say_why() -> None:
    fp8, bf16 = FORMS["fp8"], FORMS["bf16"]
    big = known("qwen3-235b-a22b-fp8")
    assert "192 each, no multiple of the block of 128" in impossible(big, fp8, Layout(tensor=8))
    assert impossible(big, fp8, Layout(tensor=8, expert_parallel=True)) == ""
    assert impossible(big, bf16, Layout(tensor=8)) == ""
    assert "heads do not divide" in impossible(big, bf16, Layout(tensor=3))
    int4 = FORMS["int4"]  # a group of 128 columns has one scale, which two ranks cannot share
    assert "14784 each, no multiple of the block of 128" in impossible(known("qwen2.5-72b"), int4, Layout(tensor=2))
    assert (
        impossible(known("qwen2.5-72b"), int4, Layout()) == "" == impossible(known("qwen3-8b"), int4, Layout(tensor=2))
    )
    assert "no experts" in impossible(known("qwen3-8b"), bf16, Layout(tensor=2, expert_parallel=True))
    assert "needs expert parallelism" in impossible(big, bf16, Layout(data=2))
    assert "too few" in impossible(big, bf16, Layout(pipeline=95))
    assert "experts are too few" in impossible(big, bf16, Layout(data=256, expert_parallel=True))


def test_layouts_are_spelt_and_read() -> None:
    for text in ("tp1", "tp8", "tp8,pp2", "tp4 dp4 ep16", "tp8 ep8"):
        assert str(parse_layout(text)) == text.replace(",", " ")
    assert parse_layout("tp4,dp4,ep").experts == 16
    for wrong in ("tp", "tp0", "xp4", "tp4,tp8", "8", "tp8,ep4"):
        with pytest.raises(UnsupportedModel):
            parse_layout(wrong)


def test_pipeline_stages_are_even() -> None:
    for layers in (1, 27, 61, 94):
        for pipeline in range(1, layers + 1):
            counts = stages(layers, pipeline)
            assert sum(counts) == layers and len(counts) == pipeline and max(counts) - min(counts) <= 1


def test_workspace_follows_its_formulas() -> None:
    anatomy, tp8 = known("deepseek-r1"), Layout(tensor=8)
    assert activations(anatomy, tp8, 8192).value == pytest.approx(2 * 8192 * 7168 * 8 * 1.15)
    assert activations(known("qwen3-8b"), ONE, 1).value == 90 * 2**20
    assert logits(anatomy, tp8, 256).value == 256 * 129_280 // 8 * 4
    rows = expert_workspace(anatomy, tp8, 8192)
    spread = expert_workspace(anatomy, Layout(tensor=8, expert_parallel=True), 8192)
    assert rows is not None and spread is not None and rows.value == 8192 * 8 * 7168 * 4 == 8 * (spread.value or 0)
    assert expert_workspace(known("qwen3-8b"), ONE, 8192) is None


def test_every_estimate_says_how_it_is_known() -> None:
    catalog, two = load(), Layout(tensor=2)
    for chip in catalog.chips.values():
        buffers = communication(chip.vendor, two)
        assert buffers is not None
        for figure in (runtime(chip), buffers):
            assert figure.faults() == "" and figure.how != "unknown" and figure.note
            assert chip.vendor in ("nvidia", "huawei", "cpu") or "not found for this vendor" in figure.note
        assert communication(chip.vendor, ONE) is None


@pytest.mark.parametrize(
    ("declared", "name", "each"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", 4 + (16 + 4) / 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4", 4 + (16 + 4) / 32),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8", 8 + (16 + 8) / 128),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", 8),
    ],
)
def test_declared_quantization(declared: dict[str, object], name: str, each: float) -> None:
    config = bundled()["qwen2.5-72b"].config
    plain, packed = read_anatomy(config), read_anatomy(config | {"quantization_config": declared})
    form = published(packed)
    assert form.name == name
    matrices = sum(t.elements for t in plain.tensors if t.linear)
    rest = 2 * (plain.parameters - matrices)
    assert checkpoint_bytes(packed, form) == pytest.approx(rest + matrices * each / 8, rel=0.002)


def test_modules_that_are_not_converted_stay_plain() -> None:
    config = bundled()["qwen3-235b-a22b-fp8"].config
    kept = config["quantization_config"] | {"modules_to_not_convert": ["lm_head", "model.layers.0.self_attn.o_proj"]}
    anatomy = read_anatomy(config | {"quantization_config": kept})
    form = published(anatomy)
    types = {t.name.rpartition("self_attn.")[2]: form.type_of(t) for t in anatomy.tensors if "self_attn" in t.name}
    assert types["o_proj.weight"] == "BF16" and types["q_proj.weight"] == "F8_E4M3"


@pytest.mark.parametrize(
    "declared", [{"quant_method": "hqq"}, {"quant_method": "awq", "bits": 3},
                 {"quant_method": "fp8", "weight_block_size": [128]}, {"quant_method": "gptq", "group_size": 0}],
)  # fmt: skip
def test_quantization_that_is_not_understood_is_refused(declared: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        published(read_anatomy(bundled()["qwen3-8b"].config | {"quantization_config": declared}))


def test_forms_have_other_names() -> None:
    assert find_form("W8A8") is FORMS["int8"] and find_form("awq") is FORMS["int4"]
    with pytest.raises(UnsupportedModel, match="known are fp32, bf16"):
        find_form("int3")


def test_what_chips_run_is_evidence() -> None:
    chips = load().chips
    assert suits(chips["h20"], FORMS["fp8"]).answer == "yes"
    assert suits(chips["a100-sxm-80"], FORMS["fp8"]).answer == "no"
    assert suits(chips["ascend-910b3"], FORMS["fp8"]).answer == "no"
    assert suits(chips["ascend-910b3"], FORMS["int8"]).answer == "yes"
    assert suits(chips["mi300x"], FORMS["fp8"]).answer == "yes"  # re-encoded
    assert suits(chips["v100-32"], FORMS["bf16"]).answer == "no"
    assert suits(chips["biren-106"], FORMS["int4"]).answer == "unknown"
    for chip in chips.values():
        for form in FORMS.values():
            assert suits(chip, form).faults() == ""
