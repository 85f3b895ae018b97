"""The experts of a mixture as one op on packed weights, in C++ (csrc/cpu/experts.h)."""

from __future__ import annotations

from torch import Tensor

from twinline.engine.ops.cpu.library import KINDS, call, empty, refuse
from twinline.engine.ops.cpu.linear import Packed, pack
from twinline.engine.ops.quantized import Quantized
from twinline.engine.ops.registry import implements
from twinline.facts.weight_form import PLAIN, WeightForm


@implements("experts", refuse=refuse)
class GroupedExperts:
    def pack(
        self, gate_up_EIX: Tensor | Quantized, down_EXI: Tensor | Quantized, form: WeightForm = PLAIN
    ) -> tuple[Packed, Packed]:
        return pack(gate_up_EIX, form), pack(down_EXI, form)

    def __call__(
        self,
        x_NX: Tensor,
        packed: tuple[Packed, Packed],
        chosen_NK: Tensor,
        weights_NK: Tensor,
        base_NX: Tensor | None = None,
    ) -> Tensor:
        gate_up, down = packed
        rows, per_token = chosen_NK.shape
        out = empty(rows, down.outputs, dtype=x_NX.dtype)
        base_stride = 0 if base_NX is None else base_NX.stride(0)
        call("experts", *gate_up.words, *down.words, x_NX, base_NX, chosen_NK, weights_NK, out, KINDS[x_NX.dtype], rows,
             per_token, x_NX.stride(0), base_stride, chosen_NK.stride(0), weights_NK.stride(0))  # fmt: skip
        return out
