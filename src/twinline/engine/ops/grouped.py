"""Experts as two grouped matrix products, whose groups the device counts itself: nothing is read on the host, so that
steps of a mixture of experts can be recorded.

Runs where PyTorch's `grouped_mm` does. Shape suffixes as in `reference.py`; A is N * K, a row for each chosen expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.engine.ops.batched import silu_mul
from twinline.engine.ops.registry import StaticFacts, implements
from twinline.facts.weight_form import PLAIN, WeightForm

_product = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


_ALIGNED = 8  # numbers of a row: the kernels read 16 bytes at a time


def _refuse(facts: StaticFacts) -> str | None:
    if _product is None:
        return f"PyTorch {torch.__version__} has no grouped_mm"
    if facts.dtype != torch.bfloat16:
        return "bfloat16 only"
    return None if facts.weights.kind == "plain" else f"no {facts.weights} weights"


@implements("experts", refuse=_refuse)
class GroupedExperts:
    """Rows sorted by expert; a row's results are added in the order of its experts, so the same in every batch."""

    def pack(self, gate_up_EIX: Tensor, down_EXI: Tensor, form: WeightForm = PLAIN) -> tuple[Tensor, Tensor]:
        """As they are, but for rows of other lengths than a multiple of eight, which get zeros."""
        x, i = (-size % _ALIGNED for size in down_EXI.shape[1:])
        if not x and not i:
            return gate_up_EIX, down_EXI
        gate, up = (F.pad(part, (0, x, 0, i)) for part in gate_up_EIX.chunk(2, 1))
        return torch.cat((gate, up), 1), F.pad(down_EXI, (0, i, 0, x))

    def __call__(
        self,
        x_NX: Tensor,
        packed: tuple[Tensor, Tensor],
        chosen_NK: Tensor,
        weights_NK: Tensor,
        base_NX: Tensor | None = None,
    ) -> Tensor:
        assert _product is not None
        gate_up_EIX, down_EXI = packed
        (rows, per_row), size = chosen_NK.shape, x_NX.shape[1]
        if size % _ALIGNED:
            x_NX = F.pad(x_NX, (0, down_EXI.shape[1] - size))
        expert_A, order_A = chosen_NK.flatten().sort(stable=True)
        ends_E = torch.searchsorted(expert_A, torch.arange(len(down_EXI), device=x_NX.device), right=True).int()
        inner_AI = silu_mul(_product(x_NX[order_A // per_row], gate_up_EIX.transpose(1, 2), offs=ends_E))
        out_AX = torch.empty(rows * per_row, x_NX.shape[1], dtype=x_NX.dtype, device=x_NX.device)
        out_AX[order_A] = _product(inner_AI, down_EXI.transpose(1, 2), offs=ends_E)
        out_NX = (out_AX.view(rows, per_row, -1).float() * weights_NK[..., None]).sum(1)[:, :size]
        return (out_NX if base_NX is None else out_NX + base_NX.float()).to(x_NX.dtype)
