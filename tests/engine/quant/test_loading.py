"""The engine on quantized checkpoints: the same as on the plain checkpoint of what they stand for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.checkpoints import R1, Config, weights, write, write_sharded
from tests.engine.driving import DEVICE, Driven, only, same
from tests.engine.quant import writers
from tests.engine.quant.writers import Written
from torch import Tensor

from twinline.engine.models.moe import RoutedExperts
from twinline.engine.models.parts import Linear
from twinline.engine.ops.cpu import library
from twinline.engine.sizes import weight_bytes
from twinline.facts.models import UnsupportedModel
from twinline.facts.weight_form import PLAIN, WeightForm

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58]
# Blocks end inside q_a, kv_a, kv_b, o and down; gate and up of the dense layer do, of experts they do not.
SIZES: Config = R1 | {
    "num_hidden_layers": 2, "hidden_size": 160, "intermediate_size": 192, "moe_intermediate_size": 128,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 32,
}  # fmt: skip
MAKERS: dict[str, Callable[[dict[str, Tensor]], Written]] = {
    "fp8": writers.fp8, "w8a8": writers.w8a8, "w4a16": writers.w4a16, "gptq": writers.gptq, "awq": writers.awq,
    "act order": lambda w: writers.gptq(w, act_order=True, symmetric=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return weights(SIZES)


@pytest.fixture(scope="module")
def made(plain: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The folder of a kind, and the plain one of what it stands for, in float32."""
    folders: dict[str, tuple[Path, Path]] = {}

    def get(kind: str) -> tuple[Path, Path]:
        if kind not in folders:
            found, folder = MAKERS[kind](plain), tmp_path_factory.mktemp(kind.replace(" ", "-"))
            config = SIZES | {"quantization_config": found.config}
            # Scales lie in another file than their values, for some.
            packed = write_sharded(folder / "packed", config, found.tensors, 3)
            truth = {n: t.float() for n, t in found.truth.items()}
            folders[kind] = packed, write(folder / "truth", SIZES, truth)
        return folders[kind]

    return get


def forms(line: Driven) -> dict[str, WeightForm]:
    return {path: m.form for path, m in line.model.named_modules() if isinstance(m, Linear | RoutedExperts)}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_reference_gives_the_logits_of_the_exact_values(
    kind: str, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, as `same` has it: int4's and int8's products are exact in float32, and fp8's are rounded once."""
    only(monkeypatch, "reference")
    packed, truth = made(kind)
    want = Driven(truth).logits(IDS)
    assert same(Driven(packed).logits(IDS), want)
    assert same(Driven(packed, weights="plain").logits(IDS), want)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cpus_own_kernels_on_the_numbers_as_they_are(kind: str, dtype: str, made: Any) -> None:
    """fp8 meets activations as they are; integers round these to 8 bits as well."""
    packed, truth = made(kind)
    want = Driven(truth).logits(IDS)
    error = (Driven(packed, dtype=dtype).logits(IDS).float() - want).norm() / want.norm()
    eight = (Driven(truth, dtype=dtype, weights="int8").logits(IDS).float() - want).norm() / want.norm()
    plain = (Driven(truth, dtype=dtype).logits(IDS).float() - want).norm() / want.norm()
    assert error <= (1.5 * plain + 1e-5 if kind in ("fp8", "act order") else 1.5 * eight)


def test_what_is_kept_and_what_is_not(
    made: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if DEVICE != "cpu":
        only(monkeypatch, "reference")  # which computes with every form; other devices' own kernels may not
    with caplog.at_level(logging.INFO, logger="twinline.engine.build"):
        got = {kind: forms(Driven(made(kind)[0])) for kind in MAKERS}
    wide = WeightForm("int8", 32)
    for kind, form in (("w8a8", WeightForm("int8")), ("w4a16", WeightForm("int4", 32)), ("act order", PLAIN),
                       ("gptq", wide), ("awq", wide), ("fp8", WeightForm("fp8"))):  # fmt: skip
        # 192 rows of gate end inside a square, where up's begin.
        differs = {"head"} | ({"layers.0.mlp.gate_up"} if kind == "fp8" else set())
        assert {path for path, f in got[kind].items() if f != form} == (differs if form != PLAIN else set()), kind
        assert all(got[kind][path] == PLAIN for path in differs)
    lines = [r.message for r in caplog.records if r.message.startswith("weights: ")]
    assert len(lines) == len(MAKERS) and not any("\n" in line for line in lines)
    for kind, words in (
        (
            "fp8",
            ["FP8 by blocks of 128 x 128", "kept as fp8, exactly", "4 dequantized", "split by heads", "beside others"],
        ),
        ("gptq", ["gptq, INT4", "kept as int8:32, exactly (zero points, and float16 scales)", "--weights int4:128"]),
        ("act order", ["dequantized to float32", "act order"]),
        ("w4a16", ["compressed-tensors", "kept as int4:32, exactly"]),
    ):
        line = next(text for k, text in zip(MAKERS, lines, strict=True) if k == kind)
        assert all(word in line for word in words), line


def test_another_form_can_be_asked_for(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantized on from the exact values, or with the numbers kept: never by way of the model's dtype."""
    only(monkeypatch, "reference")
    for kind, asked in (("fp8", "int8"), ("fp8", "int4:64"), ("w8a8", "fp8"), ("awq", "int4")):
        packed, truth = made(kind)
        got, want = (Driven(folder, weights=asked).logits(IDS) for folder in (packed, truth))
        assert same(got, want), f"{kind} as {asked}"
        in_16 = Driven(packed, weights=asked, dtype="bfloat16")
        assert forms(in_16)["layers.1.mlp.experts"] == forms(Driven(truth, weights=asked))["layers.1.mlp.experts"]
    packed, truth = made("gptq")
    want, near = Driven(truth).logits(IDS), Driven(packed, weights="int4").logits(IDS)
    anew = Driven(truth, weights="int4").logits(IDS)
    assert 0 < (near - want).norm() < 0.3 * (anew - want).norm(), "the numbers were not kept"
    head = forms(Driven(packed, head_weights="int8"))
    assert head["head"] == WeightForm("int8") and head["layers.0.mlp.down"] == WeightForm("int8", 32)


def test_a_device_whose_kernels_do_not_know_the_form(
    made: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It computes with plain weights, faster than the reference would with quantized ones; the log says so."""
    only(monkeypatch, "batched", "reference")
    packed, truth = made("fp8")
    with caplog.at_level(logging.INFO, logger="twinline.engine.build"):
        line = Driven(packed)
    assert set(forms(line).values()) == {PLAIN}
    assert {c.provider for c in line.built.ops.choices if c.op in ("linear", "experts")} == {"batched"}
    why = f"no provider of {line.built.device.name} computes linear and experts with fp8 weights"
    assert any(why in r.message for r in caplog.records)
    torch.testing.assert_close(line.logits(IDS), Driven(truth).logits(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE != "cpu" or library.why_not() is not None, reason="of the CPU's own kernels")
def test_a_dtype_that_would_keep_the_form_is_named(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Most GPTQ and AWQ checkpoints say float16, in which no kernel of a CPU meets integers."""
    with caplog.at_level(logging.INFO, logger="twinline.engine.build"):
        line = Driven(made("awq")[0], dtype="float16")
    assert set(forms(line).values()) == {PLAIN}
    assert any("weights in float16; --dtype bfloat16 keeps them" in r.message for r in caplog.records)


def test_memory_is_counted_in_the_forms_that_are_kept(made: Any) -> None:
    """From shapes alone, before anything is read: what fits must not depend on luck."""
    sizes = {}
    for kind in ("fp8", "w4a16", "act order"):
        line = Driven(made(kind)[0])
        sizes[kind] = sum(packed_bytes(m.packed) for m in line.model.modules() if isinstance(m, Linear | RoutedExperts))
        counted = weight_bytes(restored(line))
        rest = sum(p.numel() * p.element_size() for p in line.model.parameters())
        # Packed weights are filled up to blocks of 64 outputs: experts of 128, rows of 160 and 192.
        assert counted - rest <= sizes[kind] <= 1.35 * (counted - rest), kind
    if DEVICE == "cpu":  # others may keep none
        assert sizes["w4a16"] < 0.65 * sizes["fp8"] < 0.3 * sizes["act order"]


def packed_bytes(packed: Any) -> int:
    if isinstance(packed, tuple):
        return sum(map(packed_bytes, packed))
    return (packed if isinstance(packed, Tensor) else packed.data).nbytes


def restored(line: Driven) -> Any:
    from twinline.engine.models.transformer import Transformer

    model = Transformer(line.built.ops, line.built.spec)
    for path, form in forms(line).items():
        model.get_submodule(path).form = form
    return model


def test_modules_that_stay_plain(plain: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`modules_to_not_convert`: known by what is in the file. A fused part with one plain piece is plain."""
    only(monkeypatch, "reference")
    kept = ("layers.0.self_attn.o_proj", "layers.1.mlp.shared_experts.up_proj")
    found = writers.written(plain, writers.FP8 | {"modules_to_not_convert": ["lm_head"]}, writers.fp8_blocks,
                            lambda n: writers.is_matrix(n) and not any(k in n for k in kept))  # fmt: skip
    line = Driven(write(tmp_path / "packed", SIZES | {"quantization_config": found.config}, found.tensors))
    truth = Driven(write(tmp_path / "truth", SIZES, {n: t.float() for n, t in found.truth.items()}))
    assert same(line.logits(IDS), truth.logits(IDS))
    got = forms(line)
    assert got["layers.0.attention.out"] == got["layers.1.mlp.shared.gate_up"] == PLAIN
    assert got["layers.1.attention.out"] == got["layers.1.mlp.shared.down"] == WeightForm("fp8")


def test_what_does_not_fit_the_declaration_is_refused(plain: dict[str, Tensor], tmp_path: Path) -> None:
    def refusal(config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
        with pytest.raises(UnsupportedModel) as caught:
            Driven(write(tmp_path / "wrong", SIZES | config, tensors))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    some = "model.layers.1.self_attn.o_proj."
    made = writers.gptq(plain)
    assert "no use for" in refusal({"quantization_config": made.config}, made.tensors | {some + "what": torch.ones(1)})
    assert "lacks" in refusal({"quantization_config": writers.FP8}, made.tensors)
    assert "lacks" in refusal({}, made.tensors)
    eight = writers.fp8(plain)
    assert "packed weights" in refusal({}, {n: t for n, t in eight.tensors.items() if "scale" not in n})
    assert "'hqq' weights cannot be read" in refusal({"quantization_config": {"quant_method": "hqq"}}, plain)


def test_llama_and_a_tied_head(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another family: q, k and v are one part, with biases; and the head is the embedding, which stays plain."""
    from safetensors.torch import load_file

    only(monkeypatch, "reference")
    import json

    source = saved("qwen2").folder
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    for kind in ("fp8", "w8a8"):
        found = MAKERS[kind](tensors)
        line = Driven(write(tmp_path / kind, config | {"quantization_config": found.config}, found.tensors))
        truth = write(tmp_path / f"{kind}-truth", config, {n: t.float() for n, t in found.truth.items()})
        assert same(line.logits(IDS), Driven(truth).logits(IDS))
        assert forms(line)["head"] == PLAIN
