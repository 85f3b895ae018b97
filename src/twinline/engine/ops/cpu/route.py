"""The router of a mixture of experts, in C++ (csrc/cpu/route.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from twinline.engine.ops.cpu.library import KINDS, call, empty, refuse
from twinline.engine.ops.registry import implements
from twinline.facts.models import Experts

BEST_OF_GROUP = {"none": 0, "max": 1, "top2": 2}


@implements("route", refuse=refuse)
def route(x_NX: Tensor, gate_EX: Tensor, bias_E: Tensor | None, e: Experts) -> tuple[Tensor, Tensor]:
    """Of experts, or groups, that score alike the one of the lower number is taken."""
    rows, size = x_NX.shape
    chosen = empty(rows, e.per_token, dtype=torch.int64)
    weights = empty(rows, e.per_token, dtype=torch.float32)
    best = BEST_OF_GROUP[e.limit] if e.groups > 1 else 0
    how = e.groups, e.groups_kept, best, int(e.score == "softmax"), int(e.normalise), float(e.scale)
    call("route", x_NX, gate_EX, bias_E, chosen, weights, KINDS[x_NX.dtype], rows, size, x_NX.stride(0), len(gate_EX),
         e.per_token, *how)  # fmt: skip
    return chosen, weights
