"""Linear layers on packed weights of every form, in C++ (csrc/cpu/layout.h, packing.h, linear.h).

Weights are quantized as `ops/quantized.py` says, to the bit, while they are packed. Integer weights meet activations
that are rounded to int8 as well, by groups of inputs: the weights' own groups, or 512 where an output has one scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.ops.cpu import memory
from twinline.engine.ops.cpu.library import KINDS, call, empty, refuse
from twinline.engine.ops.quantized import Quantized
from twinline.engine.ops.registry import implements
from twinline.facts.weight_form import PLAIN, WeightForm

FORMS = {"int8": 2, "int4": 3, "fp8": 4}  # as `Form` in csrc/cpu/kernels.h; plain ones are as KINDS
WIDENED = 5  # bfloat16 that meets float32 rows
SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 3}


@dataclass(frozen=True)
class Packed:
    """One matrix `[outputs, inputs]`, or a stack of them; `words` are the fields of `Weight` in csrc/cpu/kernels.h."""

    data: Tensor
    form: WeightForm
    count: int
    outputs: int
    inputs: int
    words: tuple[Tensor | int, ...]


def pack(weight: Tensor | Quantized, form: WeightForm = PLAIN, scales: Tensor | None = None) -> Packed:
    """Packs `[outputs, inputs]` or `[count, outputs, inputs]`: float32, bfloat16 or float16 rounded to `form` on the
    way, or numbers in the form already with their float32 `scales`, as `quantize` gives both."""
    if isinstance(weight, Quantized):
        return pack(weight.numbers, form, weight.scales)
    weight = weight.contiguous()
    outputs, inputs = weight.shape[-2:]
    count = weight.numel() // (outputs * inputs)
    number = _plain(weight) if form.kind == "plain" else FORMS[form.kind]
    shape = (number, form.group, count, outputs, inputs)
    size = torch.empty(1, dtype=torch.int64)
    call("weight_bytes", None, *shape, size)
    data = memory.empty(int(size))
    words = (data, *shape)
    call("pack_weight", *words, weight, None if scales is None else scales.contiguous(), SOURCES[weight.dtype])
    return Packed(data, form, count, outputs, inputs, words)


def _plain(weight: Tensor) -> int:
    """The form of values as they are. Float32 that was bfloat16 once is packed as that: the same products to the bit,
    from half the memory."""
    if weight.dtype is torch.float32 and all(_narrow(part) for part in weight.flatten().split(1 << 20)):
        return WIDENED
    return KINDS[weight.dtype]


def _narrow(values: Tensor) -> bool:
    return not bool((values.view(torch.int32) & 0xFFFF).any())


@implements("linear", refuse=refuse)
class PackedLinear:
    def pack(self, weight: Tensor | Quantized, form: WeightForm = PLAIN) -> Packed:
        return pack(weight, form)

    def __call__(self, x_NX: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
        if x_NX.stride(-1) != 1:
            x_NX = x_NX.contiguous()
        out = empty(x_NX.shape[0], packed.outputs, dtype=x_NX.dtype)
        call("linear", *packed.words, x_NX, bias, out, KINDS[x_NX.dtype], x_NX.shape[0], x_NX.stride(0))
        return out
