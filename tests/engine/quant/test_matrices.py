"""Every layout of quantized checkpoints that is read, against values worked out number by number (`writers.py`)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.engine.quant import writers
from tests.engine.quant.writers import Written
from torch import Tensor

from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.ops.quantized import dequantize, product
from twinline.engine.quant import matrices
from twinline.engine.quant.matrices import Matrix, matrix
from twinline.facts.models import UnsupportedModel
from twinline.facts.quantization import quantization
from twinline.facts.weight_form import WeightForm

NAME = "m.weight"


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    # Rows of unlike sizes, so that scales matter.
    return torch.randn(rows, columns, generator=draw) * torch.rand(rows, 1, generator=draw).exp2()


def read(folder: Path, made: Written, name: str = NAME) -> Matrix:
    save_file(made.tensors, folder / "model.safetensors")
    declared = quantization({"quantization_config": json.loads(json.dumps(made.config))})
    found = matrix(Checkpoint(folder), name, declared)
    assert found is not None
    return found


def once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 rounded once: by way of float32 rounded to odd, whose 24 bits leave room for no second mistake."""
    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    near = values.float()
    bits = near.view(torch.int32)
    away = torch.nextafter(near, torch.where(values > near.double(), torch.inf, -torch.inf).float())
    odd = torch.where((values != near.double()) & (bits % 2 == 0), away, near)
    return odd.to(dtype)


KINDS: dict[str, tuple[Callable[[dict[str, Tensor]], Written], WeightForm | None]] = {
    "fp8": (writers.fp8, WeightForm("fp8")),
    "fp8 ue8m0": (lambda w: writers.fp8(w, power_of_two=True), WeightForm("fp8")),
    "w8a8": (writers.w8a8, WeightForm("int8")),
    "w4a16": (writers.w4a16, WeightForm("int4", 32)),
    "w4a16 128": (lambda w: writers.w4a16(w, size=128), WeightForm("int4", 128)),
    "w4a16 asymmetric": (lambda w: writers.w4a16(w, symmetric=False), WeightForm("int8", 32)),
    "gptq": (writers.gptq, WeightForm("int8", 32)),
    "gptq v2": (lambda w: writers.gptq(w, second=True, symmetric=False), WeightForm("int8", 32)),
    "gptq asymmetric": (lambda w: writers.gptq(w, symmetric=False), WeightForm("int8", 32)),
    "gptq row": (lambda w: writers.gptq(w, size=-1), WeightForm("int8")),
    "gptq act order": (lambda w: writers.gptq(w, act_order=True), None),
    "gptq 8 bits": (lambda w: writers.gptq(w, bits=8, size=64), WeightForm("int8", 64)),
    "gptq 8 bits asymmetric": (lambda w: writers.gptq(w, bits=8, size=64, symmetric=False), None),
    "awq": (writers.awq, WeightForm("int8", 32)),
    "awq 64": (lambda w: writers.awq(w, size=64), WeightForm("int8", 64)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_read_to_the_bit(kind: str, tmp_path: Path) -> None:
    """320 inputs end inside a block of 128; 200 outputs too."""
    make, form = KINDS[kind]
    made = make({NAME: weight(200, 320)})
    found = read(tmp_path, made)
    assert found.shape == (200, 320) and set(found.tensors) == made.tensors.keys()
    assert found.form == form and (found.form is not None or found.why)
    assert found.decode is not None
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        want = once(made.truth[NAME], dtype)
        assert torch.equal(found.decode().values(dtype), want), dtype
    if form is not None:
        numbers, scales = found.decode().as_form(form)
        assert numbers.shape == (200, 320) and scales.shape == form.scales(200, 320)
        assert torch.equal(dequantize(numbers, scales, form, torch.float64), made.truth[NAME])


@pytest.mark.parametrize("sizes", [(1, 8), (8, 32), (128, 128), (129, 257), (576, 136)])
def test_ragged_blocks(sizes: tuple[int, int], tmp_path: Path) -> None:
    made = writers.fp8({NAME: weight(*sizes)})
    assert made.tensors["m.weight_scale_inv"].shape == (-(-sizes[0] // 128), -(-sizes[1] // 128))
    found = read(tmp_path, made)
    assert found.decode is not None
    assert torch.equal(found.decode().values(torch.float64), made.truth[NAME])


def test_products_are_rounded_once() -> None:
    """Products that land on the middle between two values once they are float32."""
    numbers = torch.tensor([writers.e4m3(b) for b in range(256) if b & 127 != 127])
    draw = torch.Generator().manual_seed(1)
    scales = torch.cat((torch.rand(4000, generator=draw) * 1e-3, torch.rand(2000, generator=draw) * 1e-7))[:, None]
    exact = numbers.double() * scales.double()
    for dtype, twice in ((torch.bfloat16, 5), (torch.float16, 5)):
        assert torch.equal(product(numbers, scales, dtype), once(exact, dtype))
        wrong = (exact.float().to(dtype) != once(exact, dtype)).sum()
        assert wrong >= twice, "rounding twice would not be seen"


def test_scales_of_every_type(tmp_path: Path) -> None:
    """e8m0 as such and as bytes, bfloat16, float16; one for the whole matrix; one for each row."""
    made = writers.fp8({NAME: weight(200, 320)}, power_of_two=True)
    scales = made.tensors["m.weight_scale_inv"]
    bytes_ = (scales.log2() + 127).to(torch.uint8)
    assert matrices_scales(torch.arange(255, dtype=torch.uint8), tmp_path) == [2.0**e for e in range(-127, 128)]
    for other in (bytes_, scales.bfloat16(), scales.half()):
        made.tensors["m.weight_scale_inv"] = other
        found = read(tmp_path, made)
        assert found.decode is not None
        assert torch.equal(found.decode().values(torch.float64), made.truth[NAME])
    for shape in ((), (1,)):
        parts = {NAME: made.tensors[NAME], "m.weight_scale": torch.full(shape, 0.3), "m.input_scale": torch.ones(1)}
        found = read(tmp_path, Written({"quant_method": "fp8", "activation_scheme": "static"}, parts))
        assert set(found.tensors) == parts.keys()
        assert found.form == WeightForm("fp8") and found.decode is not None
        want = writers.E4M3[made.tensors[NAME].view(torch.uint8).long()] * torch.tensor(0.3).double()
        assert torch.equal(found.decode().values(torch.float64), want)
    config = writers.compressed("float-quantized", 8, 0, True, type="float")
    by_row = Written(config, {NAME: made.tensors[NAME], "m.weight_scale": torch.rand(200, 1)})
    found = read(tmp_path, by_row)
    assert found.form is None and found.decode is not None
    want = writers.E4M3[made.tensors[NAME].view(torch.uint8).long()] * by_row.tensors["m.weight_scale"].double()
    assert torch.equal(found.decode().values(torch.float64), want)


def matrices_scales(bytes_: Tensor, folder: Path) -> list[float]:
    save_file({"s": bytes_}, folder / "model.safetensors")
    return matrices._scales(Checkpoint(folder), "s").tolist()


def test_numbers_are_kept_when_only_scales_are_rounded(tmp_path: Path) -> None:
    """Symmetric GPTQ as int4: the numbers stay, its float16 scales become bfloat16; AWQ's do not fit 4 bits."""
    made = writers.gptq({NAME: weight(64, 256)}, size=64)
    found = read(tmp_path, made)
    assert found.decode is not None
    for size in (64, 32):
        numbers, scales = found.decode().as_form(WeightForm("int4", size))
        exact = found.decode()
        assert torch.equal(numbers, exact.numbers)
        assert torch.equal(scales, exact.scales.repeat_interleave(64 // size, 1).bfloat16().float())
    assert not torch.equal(found.decode().as_form(WeightForm("int4", 128))[0], exact.numbers)
    skewed = read(tmp_path, writers.awq({NAME: weight(64, 256).abs() + 1}, size=64))
    assert skewed.decode is not None
    numbers, scales = skewed.decode().as_form(WeightForm("int4", 64))
    values = skewed.decode().values(torch.float32)
    off = dequantize(numbers, scales, WeightForm("int4", 64)) - values
    assert numbers.min() >= -8 and numbers.max() <= 7 and off.norm() < 0.15 * values.norm()


def test_a_bias_of_zeros_is_no_surplus(tmp_path: Path) -> None:
    made = writers.gptq({NAME: weight(64, 64)})
    made.tensors["m.bias"] = torch.zeros(64)
    assert "m.bias" in read(tmp_path, made).tensors
    made.tensors["m.bias"][3] = 1
    assert "m.bias" not in read(tmp_path, made).tensors


def changed(made: Written, **tensors: Tensor | None) -> Written:
    made.tensors |= {f"m.{name}": t for name, t in tensors.items() if t is not None}
    for name in [n for n, t in tensors.items() if t is None]:
        made.tensors.pop(f"m.{name}")
    return made


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (writers.fp8, {"weight_scale_inv": None}, "needs one tensor of scales, and has 0"),
        (writers.fp8, {"weight_scale_inv": torch.ones(1, 2)}, "m.weight_scale_inv: shape [1, 2]"),
        (writers.fp8, {"weight_scale_inv": torch.full((2, 2), torch.nan)}, "not finite"),
        (writers.fp8, {"weight_scale_inv": torch.ones(2, 2, dtype=torch.int32)}, "no type of scale"),
        (writers.w8a8, {"weight_scale": None}, "needs weight_scale"),
        (writers.w8a8, {"weight_scale": torch.ones(160, 3)}, "scales [160, 3] are not of"),
        (writers.w4a16, {"weight_shape": None}, "needs weight_scale and weight_shape"),
        (writers.w4a16, {"weight_shape": torch.tensor([160, 240])}, "32 words for 240 inputs"),
        (writers.w4a16, {"weight_scale": torch.ones(160, 2)}, "scales [160, 2] are not of INT4 by groups of 32"),
        (writers.gptq, {"scales": torch.ones(4, 160).half()}, "m.scales: shape [4, 160]"),
        (writers.gptq, {"qzeros": torch.ones(8, 10).int()}, "m.qzeros: shape [8, 10]"),
        (writers.gptq, {"g_idx": torch.arange(256).int()}, "groups that are not there"),
        (writers.gptq, {"g_idx": torch.arange(255).int()}, "m.g_idx: shape [255]"),
        (lambda w: writers.gptq(w, act_order=True), {"g_idx": None}, "desc_act is declared, and g_idx is not there"),
        (writers.awq, {"qzeros": torch.ones(8, 10).int()}, "m.qzeros: shape [8, 10]"),
    ],
)
def test_tensors_that_do_not_belong_together(make: Any, change: Any, words: str, tmp_path: Path) -> None:
    made = changed(make({NAME: weight(160, 256)}), **change)
    with pytest.raises(UnsupportedModel) as caught:
        found = read(tmp_path, made)
        assert found.decode is not None
        found.decode()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_second_code_of_eight_bits(tmp_path: Path) -> None:
    """e4m3fnuz has the same bits for half the value (engines.md 3.25): read for what it is, never kept as e4m3."""
    made = writers.fp8({NAME: weight(200, 320)})
    bits = made.tensors[NAME].view(torch.uint8)
    bits[bits == 128] = 0  # minus zero is the other code's NaN
    made.tensors[NAME] = bits.view(torch.float8_e4m3fnuz)
    found = read(tmp_path, made)
    assert found.form is None and found.decode is not None
    assert torch.equal(found.decode().values(torch.float64), made.truth[NAME] / 2)
    numbers, _ = found.decode().as_form(WeightForm("fp8"))
    assert numbers.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("kind", ["int8 rows", "int8 groups", "int8 one"])
def test_int8_with_zero_points_and_groups(kind: str, tmp_path: Path) -> None:
    """compressed-tensors' int-quantized, less usual: numbers less zero points can be more than a byte holds."""
    draw = torch.Generator().manual_seed(2)
    numbers = torch.randint(-128, 128, (70, 96), generator=draw, dtype=torch.int8)
    shape = {"int8 rows": (70, 1), "int8 groups": (70, 3), "int8 one": (1,)}[kind]
    scales = torch.rand(shape, generator=draw).bfloat16()
    spread = scales.double().reshape(1 if kind == "int8 one" else 70, -1)
    spread = spread.repeat_interleave(96 // spread.shape[1], 1)
    for wide in (False, True):
        zeros = torch.randint(-128, 128, shape, generator=draw, dtype=torch.int8) if wide else None
        config = writers.compressed("int-quantized", 8, 32 if kind == "int8 groups" else 0, not wide)
        made = Written(config, {NAME: numbers, "m.weight_scale": scales})
        offsets = torch.zeros(())
        if zeros is not None:
            made.tensors["m.weight_zero_point"] = zeros
            offsets = zeros.double().reshape(len(spread), -1)
            offsets = offsets.repeat_interleave(96 // offsets.shape[1], 1)
        found = read(tmp_path, made)
        assert found.decode is not None and (found.form is None) == wide
        assert torch.equal(found.decode().values(torch.float64), (numbers.double() - offsets) * spread)


SHAPES = st.lists(st.integers(0, 20), max_size=3)
DTYPES = st.sampled_from([torch.int32, torch.int8, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
PARTS = ("weight", "weight_scale", "weight_scale_inv", "weight_packed", "weight_shape", "weight_zero_point",
         "weight_g_idx", "qweight", "qzeros", "scales", "g_idx")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(PARTS), st.tuples(SHAPES, DTYPES), min_size=1),
       st.sampled_from([make for make, _ in KINDS.values()]))  # fmt: skip
def test_any_tensors_are_read_or_refused(parts: dict[str, tuple[list[int], torch.dtype]], make: Any) -> None:
    """Whatever lies under these names: one line that says why, never a crash."""
    config = make({}).config
    with tempfile.TemporaryDirectory() as folder:
        save_file({f"m.{n}": torch.ones(shape).to(dtype) for n, (shape, dtype) in parts.items()},
                  Path(folder) / "model.safetensors")  # fmt: skip
        with Checkpoint(Path(folder)) as checkpoint:
            try:
                found = matrix(checkpoint, NAME, quantization({"quantization_config": config}))
                result = "" if found is None or found.plain else str(found.read().values(torch.float32).shape)
            except UnsupportedModel as refusal:
                result = str(refusal)
    assert "\n" not in result and len(result) < 400
