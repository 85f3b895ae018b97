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


@implements("embedding", refuse=refuse)
def embedding(ids_N: Tensor, table_VX: Tensor) -> Tensor:
    count, size = table_VX.shape
    rows = ids_N.shape[0]
    out = empty(rows, size, dtype=table_VX.dtype)
    call("embedding", table_VX, ids_N, out, KINDS[table_VX.dtype], rows, size, count)
    return out


@implements("silu_mul", refuse=refuse)
def silu_mul(gate_up_NI2: Tensor) -> Tensor:
    rows, both = gate_up_NI2.shape
    out = empty(rows, both // 2, dtype=gate_up_NI2.dtype)
    call("silu_mul", gate_up_NI2, out, KINDS[gate_up_NI2.dtype], rows, both // 2, gate_up_NI2.stride(0))
    return out


@implements("rope", refuse=refuse)
def rope(x_NHR: Tensor, cos_NR: Tensor, sin_NR: Tensor, interleaved: bool) -> Tensor:
    out = empty(*x_NHR.shape, dtype=x_NHR.dtype)
    row, head, _ = x_NHR.stride()
    call("rope", x_NHR, cos_NR, sin_NR, out, KINDS[x_NHR.dtype], int(interleaved), *x_NHR.shape, row, head)
    return out


@implements("kv_write", refuse=refuse)
def kv_write(cache: Tensor, slots_N: Tensor, *rows_NGd: Tensor) -> None:
    _, pages, page_size, width = cache.shape
    at = 0
    for x in rows_NGd:
        row, head, _ = x.stride()
        call("kv_write", cache, slots_N, x, KINDS[x.dtype], *x.shape, row, head, pages * page_size, width, at)
        at += x.shape[2]
