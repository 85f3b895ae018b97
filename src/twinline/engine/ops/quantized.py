"""Quantized weights: what each form of facts/weight_form.py does to a matrix. This is the definition; providers that
pack while they quantize must give the same numbers.

Knows no layout. Shape suffixes: N outputs, K inputs, G groups of inputs; a matrix may be one of a stack `[..., N, K]`.

int8: one scale to an output (or to a group of its inputs), absmax / 127, so that values are -127..127.
int4: one scale to a group of an output's inputs, the value of greatest magnitude / -8, so that it becomes -8 and the
rest lie in -8..7, as in llama.cpp's q4_0. Against absmax / 7 this leaves 11 to 12% less error, measured on normal,
Laplace and trained weights alike (groups of 32, normal: 8.60% of the weights' norm against 9.71%; of 128: 10.35%
against 11.75%).
Scales are rounded to bfloat16 before the division, which costs nothing measurable (float16: 8.60% too) and has no range
to leave.
fp8: e4m3, one float32 scale to a square of 128 by 128, absmax / 448, as in DeepSeek-V3's checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.facts.weight_form import BLOCK, PLAIN, WeightForm

__all__ = ["PLAIN", "WeightForm", "dequantize", "quantize", "stored"]

GREATEST = {"int8": 127.0, "int4": -8.0, "fp8": 448.0}  # what the value of greatest magnitude becomes


def quantize(weight: Tensor, form: WeightForm) -> tuple[Tensor, Tensor]:
    """The matrix in the form's own numbers, and float32 scales: value = number * scale.

    int8 and int4: numbers int8 `[..., N, K]`, scales `[..., N, G]`, the last group short where K is no multiple. fp8:
    numbers float8_e4m3fn, scales `[..., N / 128, K / 128]`, rounded up. Raises ValueError for a plain form.
    """
    if form.kind == "plain":
        raise ValueError("a plain weight has no scales")
    values = _grouped(weight.float(), form)
    magnitude = values.abs()
    if form.kind == "fp8":
        top = magnitude.amax((-3, -1), keepdim=True)
    elif form.kind == "int4":
        top = values.gather(-1, magnitude.argmax(-1, keepdim=True))  # with its sign
    else:
        top = magnitude.amax(-1, keepdim=True)
    scales = top / GREATEST[form.kind]
    if form.kind == "int4":
        scales = scales.bfloat16().float()
    scales = torch.where(scales.abs() < torch.finfo(torch.float32).tiny, 1.0, scales)
    numbers = values / scales
    if form.kind == "fp8":
        limited = numbers.clamp(-448, 448).flatten(-2).flatten(-3, -2)
        return limited[..., : weight.shape[-2], : weight.shape[-1]].to(torch.float8_e4m3fn), scales[..., 0, :, 0]
    low, high = (-127, 127) if form.kind == "int8" else (-8, 7)
    whole = numbers.round().clamp(low, high).to(torch.int8).flatten(-2)
    return whole[..., : weight.shape[-1]], scales[..., 0]


def dequantize(numbers: Tensor, scales: Tensor, form: WeightForm, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix that `numbers` and `scales` mean, computed in float32 and rounded once to `dtype`, `[..., N, K]`."""
    rows, columns = numbers.shape[-2:]
    values = _grouped(numbers.float(), form)
    if form.kind == "fp8":
        whole = (values * scales[..., None, :, None]).flatten(-2).flatten(-3, -2)
        return whole[..., :rows, :columns].to(dtype)
    return (values * scales[..., None]).flatten(-2)[..., :columns].to(dtype)


def stored(weight: Tensor, form: WeightForm) -> Tensor:
    """What is left of a matrix that is kept in `form`, in its own dtype."""
    return weight if form.kind == "plain" else dequantize(*quantize(weight, form), form, weight.dtype)


def _grouped(values: Tensor, form: WeightForm) -> Tensor:
    """`[..., N, G, group]`, for fp8 `[..., N / 128, 128, K / 128, 128]`; filled up with zeros."""
    rows, columns = values.shape[-2:]
    size = BLOCK if form.kind == "fp8" else form.group or columns
    if columns % size:
        values = F.pad(values, (0, -columns % size))
    if form.kind != "fp8":
        return values.unflatten(-1, (-1, size))
    if rows % BLOCK:
        values = F.pad(values, (0, 0, 0, -rows % BLOCK))
    return values.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
