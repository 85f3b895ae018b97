"""What a model can be converted to: the tensors that each of its matrices becomes, and what `config.json` says of them.

Owns the layouts that are written, which are those that other engines read: DeepSeek's fp8 blocks, compressed-tensors'
`int-quantized` and `pack-quantized`. Knows no file and no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinline.engine.quant.packing import pack
from twinline.facts.weight_form import BLOCK, GROUPS, PLAIN, WeightForm, read_weight_form

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
         torch.int8: "I8", torch.int32: "I32", torch.int64: "I64"}  # fmt: skip
KNOWN = "bfloat16, float16, float32, fp8, int8, int4:32, int4:64, int4:128"


@dataclass(frozen=True)
class Part:
    """One tensor to be written. `suffix` takes the place of `weight` at the end of a matrix's name."""

    suffix: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """`form`: of linear layers. `plain`: the dtype of all else, None for 16 bits as the source has them, bfloat16 where
    it has more."""

    form: WeightForm
    plain: torch.dtype | None

    def __str__(self) -> str:
        return str(self.form) if self.plain is None else str(self.plain).removeprefix("torch.")

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix of this shape is stored in the form: groups of compressed-tensors may not be cut short, and
        words are full."""
        return len(shape) == 2 and not (self.form.group and shape[1] % self.form.group)

    def parts(self, shape: tuple[int, ...], scale: torch.dtype) -> Iterator[Part]:
        """What a matrix becomes; `scale` is the dtype of its scales."""
        rows, columns = shape
        scales = self.form.scales(rows, columns)
        if self.form.kind == "int4":
            yield Part("weight_packed", torch.int32, (rows, math.ceil(columns / 8)))
            yield Part("weight_scale", scale, scales)
            yield Part("weight_shape", torch.int64, (2,))
            return
        yield Part("weight", torch.float8_e4m3fn if self.form.kind == "fp8" else torch.int8, shape)
        yield Part("weight_scale_inv" if self.form.kind == "fp8" else "weight_scale", scale, scales)

    def tensors(self, numbers: Tensor, scales: Tensor) -> list[Tensor]:
        """The values of `parts`, in their order, from numbers in the form and scales in the dtype that is stored."""
        if self.form.kind != "int4":
            return [numbers, scales]
        return [pack(numbers.to(torch.int16) + 8, 4, 1), scales, torch.tensor(numbers.shape)]

    def config(self, kept: list[str]) -> dict[str, Any] | None:
        """`quantization_config`; `kept`: modules that stay plain, by their full names. None for a plain variant."""
        if self.form.kind == "plain":
            return None
        if self.form.kind == "fp8":
            return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                    "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": kept}  # fmt: skip
        eight = self.form.kind == "int8"
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        weights = {
            "num_bits": 8 if eight else 4,
            "type": "int",
            "symmetric": True,
            "dynamic": False,
            "strategy": "group" if self.form.group else "channel",
            "group_size": self.form.group or None,
        }
        layout = "int-quantized" if eight else "pack-quantized"
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if eight else None,
                 "output_activations": None, "format": layout}  # fmt: skip
        return {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
                "config_groups": {"group_0": group}, "ignore": kept, "kv_cache_scheme": None,
                "global_compression_ratio": None}  # fmt: skip


def read_variant(name: str) -> Variant:
    """The variant of this name. Raises ValueError with those that there are."""
    try:
        form, dtype = read_weight_form(name, "--to")
    except ValueError:
        form, dtype = PLAIN, None
    if form.kind == "plain" and dtype is None:
        raise ValueError(f"{name!r:.40} is nothing to convert to; use one of {KNOWN}")
    if form.kind == "int8" and form.group:
        sizes = ", ".join(f"int4:{group}" for group in GROUPS["int4"])
        raise ValueError(
            f"{form} is a form of this engine alone; other engines read int8 (a scale for each row), {sizes}"
        )
    return Variant(form, None if dtype is None else getattr(torch, dtype))
