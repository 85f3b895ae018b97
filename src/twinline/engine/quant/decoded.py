"""One matrix of a checkpoint, read: whole numbers (or fp8) and the scales that belong to them.

Owns what such a matrix is worth: its values, rounded once, and its numbers in one of our forms. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.ops.quantized import dequantize, product, quantize
from twinline.facts.weight_form import BLOCK, GROUPS, WeightForm


@dataclass(frozen=True)
class Decoded:
    """`numbers` `[N, K]`: int8, int16 or an 8-bit float. Either `form` says how float32 `scales` lie beside them (as
    `quantize` gives both), or `columns` `[K]` names for each input the column of `scales` `[N, G]` that is its own."""

    numbers: Tensor
    scales: Tensor
    form: WeightForm | None = None
    columns: Tensor | None = None

    def values(self, dtype: torch.dtype) -> Tensor:
        """The matrix itself: exact products, rounded once to `dtype`."""
        if self.form is not None:
            return dequantize(self.numbers, self.scales, self.form, dtype)
        assert self.columns is not None
        return product(self.numbers.float(), self.scales[:, self.columns], dtype)

    def as_form(self, form: WeightForm, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Numbers and scales in `form`: its own where it has them, else its numbers with scales rounded to what the
        form stores where that is all it takes, else quantized anew."""
        if self.form == form and (form.kind != "fp8" or self.numbers.dtype == torch.float8_e4m3fn):
            return self.numbers, self.scales
        if self.form is not None and form.kind == "int4" and self.form.kind == "int8":
            scales = regrouped(self.scales, self.form.group, form.group, self.numbers.shape[1])
            if scales is not None and int(self.numbers.min()) >= -8 and int(self.numbers.max()) <= 7:
                return self.numbers, scales.bfloat16().float()
        return quantize(self.values(torch.float32), form, scale_dtype)


def regrouped(scales: Tensor, group: int, smaller: int, inputs: int) -> Tensor | None:
    """Scales of groups of `group` inputs (0: a whole row) once for each group of `smaller`; None if these do not lie
    inside those."""
    if smaller == 0:
        return scales if group == 0 else None
    if group and group % smaller:
        return None
    within = torch.arange(-(-inputs // smaller)) * smaller
    return scales[:, within // group if group else torch.zeros_like(within)]


def group_form(kind: str, group: int) -> tuple[WeightForm | None, int]:
    """The form of `kind` that holds groups of `group` inputs exactly (0: a row), and the size of its own groups."""
    sizes = sorted(GROUPS[kind], reverse=True)
    if group in sizes:
        return WeightForm(kind, group), group  # type: ignore[arg-type]
    for size in sizes:
        if size and group % size == 0:
            return WeightForm(kind, size), size  # type: ignore[arg-type]
    return None, 0


def squares(scales: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor | None:
    """Scales of blocks once for each of our squares, ragged at the ends; None if squares do not lie inside blocks."""
    if block[0] % BLOCK or block[1] % BLOCK:
        return None
    down, across = (torch.arange(-(-side // BLOCK)) * BLOCK // size for side, size in zip(shape, block, strict=True))
    return scales[down][:, across].contiguous()
