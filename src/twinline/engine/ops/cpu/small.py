"""Norms, activations, rotation and the moves around them, in C++ (csrc/cpu/small.h)."""

from __future__ import annotations

from torch import Tensor

from twinline.engine.ops.cpu.library import KINDS, call, empty, refuse
from twinline.engine.ops.registry import implements


@implements("rms_norm", refuse=refuse)
def rms_norm(x_NX: Tensor, weight_X: Tensor, eps: float) -> Tensor:
    rows, size = x_NX.shape
    out = empty(rows, size, dtype=x_NX.dtype)
    call("rms_norm", x_NX, weight_X, out, KINDS[x_NX.dtype], rows, size, x_NX.stride(0), eps)
    return out


@implements("add_rms_norm", refuse=refuse)
def add_rms_norm(x_NX: Tensor, residual_NX: Tensor, weight_X: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, size = x_NX.shape
    out, total = (empty(rows, size, dtype=x_NX.dtype) for _ in range(2))
    call("add_rms_norm", x_NX, residual_NX, weight_X, out, total, KINDS[x_NX.dtype], rows, size, x_NX.stride(0), eps)
    return out, total
