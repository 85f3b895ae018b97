"""The compiled kernels: loading them, calling one, recording many.

Owns the shared library, the variant for this CPU and the memory of results. Knows no op: those are the modules beside
it, which fill a kernel's argument struct (csrc/cpu/kernels.h) in its order, every field eight bytes.

Recording. While a `Recording` runs a step every kernel call is kept beside being run, and every result comes from its
arena. The step may then be replayed in one call, with no Python between the kernels: on the same inputs, whose contents
may have changed, to the same result tensor.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from twinline.engine.devices.device import NotCaptured
from twinline.engine.ops.cpu.arena import Arena
from twinline.engine.ops.registry import StaticFacts

VERSION = 5  # of argument structs and weight layouts, as in csrc/cpu/entry.cpp
KINDS = {torch.float32: 0, torch.bfloat16: 1}  # as `Kind` in csrc/cpu/kernels.h
log = logging.getLogger(__name__)
VARIANT = "TWINLINE_CPU_VARIANT"  # the environment's choice, for tests of variants that are not the best of this CPU


@dataclass(frozen=True)
class Library:
    """The loaded kernels: `numbers` and `words` by kernel name; `variant` is the instruction set in use."""

    handle: ctypes.CDLL
    variant: str
    numbers: dict[str, int] = field(repr=False)
    words: dict[str, int] = field(repr=False)


@cache
def _load() -> Library | str:
    found = sorted(Path(__file__).parents[1].glob("_cpu*.so"))
    if not found:
        return "not built: no C++ compiler when the package was installed"
    try:
        handle = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"cannot be loaded: {error}"
    if not hasattr(handle, "twinline_kernels_version") or handle.twinline_kernels_version() != VERSION:
        return "built from other sources: install the package again (make setup)"
    for function in (handle.twinline_variant, handle.twinline_kernel):
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_char_p
    handle.twinline_kernel_words.argtypes, handle.twinline_kernel_words.restype = [ctypes.c_int], ctypes.c_int64
    handle.twinline_use.argtypes, handle.twinline_use.restype = [ctypes.c_char_p], ctypes.c_int
    handle.twinline_run.argtypes, handle.twinline_run.restype = [ctypes.c_int, ctypes.c_void_p], None
    handle.twinline_set_threads.argtypes, handle.twinline_set_threads.restype = [ctypes.c_int] * 2, ctypes.c_int
    names = _strings(handle.twinline_kernel)
    numbers = {name: number for number, name in enumerate(names)}
    words = {name: handle.twinline_kernel_words(number) for name, number in numbers.items()}
    variants = _strings(handle.twinline_variant)
    variant = os.environ.get(VARIANT, variants[0])
    if not handle.twinline_use(variant.encode()):
        return f"this CPU does not run the variant {variant!r} (it runs {', '.join(variants)})"
    handle.twinline_set_threads(torch.get_num_threads(), 0)
    return Library(handle, variant, numbers, words)


def _strings(at: Callable[[int], bytes | None]) -> list[str]:
    found: list[str] = []
    while (text := at(len(found))) is not None:
        found.append(text.decode())
    return found


def why_not() -> str | None:
    """Why the kernels cannot be used here, None if they can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def library() -> Library:
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(f"CPU kernels: {loaded}")
    return loaded


def variants() -> list[str]:
    """Every variant that this CPU runs, best first."""
    return _strings(library().handle.twinline_variant)


def set_threads(count: int, *, pin: bool = False) -> None:
    """How many threads compute, the calling one included. Fewer, and a warning, where the system gives no more."""
    if why_not() is None and (got := library().handle.twinline_set_threads(count, int(pin))) < count:
        log.warning("%d of %d threads compute: the system gives no more (see its limits of processes and memory)",
                    got, count)  # fmt: skip


def refuse(facts: StaticFacts) -> str | None:
    """The condition that all kernels share."""
    if facts.device_type != "cpu":
        return "CPU only"
    if facts.dtype not in KINDS:
        return "float32 and bfloat16 only"
    return why_not()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Memory for a result, not written."""
    return torch.empty(shape, dtype=dtype) if _recording is None else _recording.arena.empty(shape, dtype)


def call(kernel: str, *arguments: Tensor | int | float | None) -> None:
    """Runs a kernel. Tensors are given by address, floats as doubles, None as a null pointer, in the struct's order."""
    lib = library()
    if len(arguments) != lib.words[kernel]:
        raise TypeError(f"{kernel} takes {lib.words[kernel]} arguments, not {len(arguments)}")
    words = (ctypes.c_int64 * len(arguments))(*map(_word, arguments))
    lib.handle.twinline_run(lib.numbers[kernel], words)
    if _recording is not None:
        _recording.calls.append((lib.numbers[kernel], words))


def _word(value: Tensor | int | float | None) -> int:
    if value.__class__ is int:  # most are
        return value
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, float):
        return int(struct.unpack("q", struct.pack("d", value))[0])
    return int(value or 0)


class Recording:
    """The kernel calls of one run of a step, to run again on the same tensors."""

    def __init__(self, arena: Arena):
        self.arena = arena
        self.calls: list[tuple[int, ctypes.Array[ctypes.c_int64]]] = []

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Runs `step` and keeps its kernel calls. Raises NotCaptured if it computes by anything else."""
        global _recording
        _recording = self
        try:
            with _KernelsOnly():
                result = step()
        finally:
            _recording = None
        self._kernels = (ctypes.c_int32 * len(self.calls))(*(number for number, _ in self.calls))
        self._arguments = (ctypes.c_void_p * len(self.calls))(*(ctypes.addressof(words) for _, words in self.calls))
        return result

    def replay(self) -> None:
        library().handle.twinline_replay(self._kernels, self._arguments, len(self.calls))


_recording: Recording | None = None


class _KernelsOnly(TorchDispatchMode):
    """Lets views pass, and nothing else that PyTorch would compute: a replay would not do it again."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler for us, for more than a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            raise NotCaptured(f"{func} is no kernel of ours")
        return func(*args, **(kwargs or {}))
