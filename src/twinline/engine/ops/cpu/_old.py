"""Our own C++ kernels for CPUs (csrc/), through ctypes.

Owns loading them and their weight layout. They are built with the package where a C++ compiler is found; where they are
not, or where the CPU lacks what they need, `refuse` says so and the next provider serves.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan
from twinline.engine.ops.registry import StaticFacts, implements

VERSION = 2  # of signatures and layouts, as in csrc/
BLOCK = 64  # output rows in a block, as in csrc/linear_bf16.cpp


@dataclass(frozen=True)
class Kernels:
    """The loaded library, or why there is none."""

    library: ctypes.CDLL | None
    why_not: str | None


@cache
def kernels() -> Kernels:
    found = sorted(Path(__file__).parents[1].glob("_cpu*.so"))
    if not found:
        return Kernels(None, "not built: no C++ compiler when the package was installed")
    try:
        # PyTorch's own OpenMP runtime serves the kernels too: two of them would fight for the cores.
        for runtime in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
            ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return Kernels(None, f"cannot be loaded: {error}")
    if not hasattr(library, "twinline_kernels_version") or library.twinline_kernels_version() != VERSION:
        return Kernels(None, "built from other sources: install the package again (make setup)")
    if not library.twinline_bf16_supported():
        return Kernels(None, "this CPU has no AVX512-BF16")
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.twinline_linear_bf16.argtypes = [pointer, size, pointer, pointer, pointer, size, size, size, ctypes.c_int]
    library.twinline_linear_bf16.restype = None
    library.twinline_attention_decode_bf16.argtypes = [*[pointer] * 6, *[size] * 7, ctypes.c_float, ctypes.c_int]
    library.twinline_attention_decode_bf16.restype = None
    return Kernels(library, None)


def _refuse(facts: StaticFacts) -> str | None:
    if facts.device_type != "cpu":
        return "CPU only"
    if facts.dtype != torch.bfloat16:
        return "bfloat16 only"
    return kernels().why_not


def _refuse_attention(facts: StaticFacts) -> str | None:
    if not facts.head_size or facts.head_size % 64:
        return f"head size {facts.head_size} is not a multiple of 64"
    return _refuse(facts)


@dataclass(frozen=True)
class Packed:
    """A weight as `[blocks, in / 2, 64, 2]`, padded with zeros; `rows` is how many outputs are real."""

    blocks: Tensor
    rows: int


@implements("linear", refuse=_refuse)
class PackedLinear:
    def pack(self, weight: Tensor) -> Packed:
        """Packs block by block, so that no second copy of a large weight is ever whole."""
        rows, columns = weight.shape
        count, pairs = -(-rows // BLOCK), -(-columns // 2)
        blocks = torch.empty(count, pairs, BLOCK, 2, dtype=torch.bfloat16)
        for i, part in enumerate(weight.split(BLOCK)):
            if part.shape != (BLOCK, 2 * pairs):
                part = F.pad(part, (0, 2 * pairs - columns, 0, BLOCK - len(part)))
            blocks[i] = part.view(BLOCK, pairs, 2).transpose(0, 1)
        return Packed(blocks, rows)

    def __call__(self, x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
        columns = 2 * packed.blocks.shape[1]
        if x.shape[-1] != columns:
            x = F.pad(x, (0, columns - x.shape[-1]))
        if x.stride(-1) != 1 or x.ndim != 2:
            x = x.reshape(-1, columns).contiguous()
        out = torch.empty(x.shape[0], packed.rows, dtype=torch.bfloat16)
        library = kernels().library
        assert library is not None
        library.twinline_linear_bf16(
            x.data_ptr(),
            x.stride(0),
            packed.blocks.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            x.shape[0],
            packed.rows,
            columns,
            torch.get_num_threads(),
        )
        return out


@implements("attention_decode", refuse=_refuse_attention)
def attention_decode(q_DHd: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DecodePlan, scale: float) -> Tensor:
    q_DHd = q_DHd.contiguous()
    out = torch.empty_like(q_DHd)
    library = kernels().library
    assert library is not None
    library.twinline_attention_decode_bf16(
        q_DHd.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        plan.pages_DP.data_ptr(),
        plan.lengths_D.data_ptr(),
        out.data_ptr(),
        plan.count,
        q_DHd.shape[1],
        *k_cache.shape[:3],
        q_DHd.shape[2],
        plan.pages_DP.shape[1],
        scale,
        torch.get_num_threads(),
    )
    return out
