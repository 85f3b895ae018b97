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
fp8: e4m3, one float32 scale to a square of 128 by 128, absmax / 448, as in DeepSeek-V3's checkpoints. Subnormals
(0.001953 to 0.013672) are values like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.facts.weight_form import BLOCK, PLAIN, WeightForm

__all__ = ["PLAIN", "Quantized", "WeightForm", "dequantize", "product", "quantize", "stored"]

GREATEST = {"int8": 127.0, "int4": -8.0, "fp8": 448.0}  # what the value of greatest magnitude becomes


@dataclass(frozen=True)
class Quantized:
    """A matrix, or a stack of them, that is quantized already: numbers and float32 scales as `quantize` gives them.

    `dtype` is that of the model: what the values would be without a form.
    """

    numbers: Tensor
    scales: Tensor
    dtype: torch.dtype


def quantize(weight: Tensor, form: WeightForm, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The matrix in the form's own numbers, and float32 scales: value = number * scale. `scale_dtype`: what scales are
    rounded to before the division, where they will be stored in less.

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
    # By a tensor of the same device: by a number, CUDA's kernel multiplies with its reciprocal, and scales come out
    # a rounding away from those of the CPU. Half of the greatest value, which lies between two numbers, then turns.
    scales = top / top.new_tensor(GREATEST[form.kind])
    scales = scales.to(torch.bfloat16 if form.kind == "int4" else scale_dtype).float()
    scales = torch.where(scales.abs() < torch.finfo(torch.float32).tiny, 1.0, scales)
    numbers = values / scales
    if form.kind == "fp8":
        limited = numbers.clamp(-448, 448).flatten(-2).flatten(-3, -2)
        return limited[..., : weight.shape[-2], : weight.shape[-1]].to(torch.float8_e4m3fn), scales[..., 0, :, 0]
    low, high = (-127, 127) if form.kind == "int8" else (-8, 7)
    whole = numbers.round().clamp(low, high).to(torch.int8).flatten(-2)
    return whole[..., : weight.shape[-1]], scales[..., 0]


def dequantize(numbers: Tensor, scales: Tensor, form: WeightForm, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix that `numbers` and `scales` mean, `[..., N, K]`: the exact products, rounded once to `dtype`."""
    rows, columns = numbers.shape[-2:]
    values = _grouped(numbers.float(), form)
    if form.kind == "fp8":
        whole = product(values, scales[..., None, :, None], dtype).flatten(-2).flatten(-3, -2)
        return whole[..., :rows, :columns]
    return product(values, scales[..., None], dtype).flatten(-2)[..., :columns]


def product(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """`numbers * scales`, both float32 of which one is broadcast, as if it were exact and rounded once to `dtype`.

    Rounded to float32 first, a product can land on the middle between two bfloat16 or float16 values, and then go to
    the wrong one of them. Those few are looked at again in float64, which holds the product exactly: numbers of at most
    16 bits times 24. On the host, for not every chip has it.
    """
    rounded = numbers * scales
    if dtype == torch.float32:
        return rounded
    if dtype not in (torch.bfloat16, torch.float16):
        return (numbers.double() * scales.double()).to(dtype)
    bits = rounded.contiguous().view(torch.int32)
    if dtype == torch.bfloat16:
        middle = (bits & 0xFFFF) == 0x8000
    else:  # below 2**-14 float16's steps no longer shrink with the value
        middle = ((bits & 0x1FFF) == 0x1000) | ((bits & 0x7FFFFFFF) < 0x38800000)
    if middle.any():
        number, scale = (side.expand_as(rounded)[middle].cpu().double() for side in (numbers, scales))
        exact, near = number * scale, rounded[middle].cpu()
        off = exact - near.double()
        # A step away from the middle, to the side on which the exact product lies: magnitude and bits grow alike.
        step = torch.where(off == 0, 0, torch.where((off > 0) == (exact > 0), 1, -1)).int()
        odd = (near.view(torch.int32) & 1) == 1
        near = torch.where(odd, near.view(torch.int32), near.view(torch.int32) + step).view(torch.float32)
        rounded = rounded.contiguous()
        rounded[middle] = near.to(rounded.device)
    return rounded.to(dtype)


def stored(weight: Tensor | Quantized, form: WeightForm) -> Tensor:
    """What is left of a matrix that is kept in `form`, in its own dtype."""
    if isinstance(weight, Quantized):
        return dequantize(weight.numbers, weight.scales, form, weight.dtype)
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
