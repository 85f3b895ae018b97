"""The files of a checkpoint: which tensors are in which, and their values, read into memory that is used again.

Owns the index, the shards' headers and the reading. Knows no model. Values are read with `pread`, not mapped: mapped
pages would count as memory of this process beside what they are copied to. Everything wrong with a file is an
UnsupportedModel with one line that names it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import weakref
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinline.facts.mistaken import taken_for
from twinline.facts.models import UnsupportedModel

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.uint8, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MAPPED = 2**20  # bytes from which memory is asked of the system itself
IDLE_BYTES = 2**28  # of memory that waits for its next use
PIECE = 2**23  # bytes asked of the system at once


def shards(directory: Path) -> dict[str, list[str]]:
    """Files of the checkpoint and the tensors in each, from the index or the single file."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            files: dict[str, list[str]] = defaultdict(list)
            for tensor, file in json.loads(index.read_text("utf-8"))["weight_map"].items():
                if not isinstance(file, str):
                    raise TypeError(f"{tensor} is in {file!r}")
                files[file].append(tensor)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModel(f"{index} cannot be read: {error!r}") from None
        try:
            missing = [file for file in files if not (directory / file).exists()]
        except OSError as error:  # one that no file can have
            raise UnsupportedModel(f"{index} names a file that cannot be: {error.strerror}") from None
        if missing:
            raise UnsupportedModel(
                f"{directory}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}"
            )
        return dict(files)
    single = directory / "model.safetensors"
    if not single.exists():
        others = sorted(file.name for kind in ("*.bin", "*.gguf") for file in directory.glob(kind))
        beside = f"; {others[0]} is of a format that is not read here" if others else ""
        raise UnsupportedModel(f"{directory} has no model.safetensors and no model.safetensors.index.json{beside}")
    with Shard(single) as shard:
        return {single.name: list(shard.tensors)}


class Stored(msgspec.Struct, frozen=True):
    """A tensor as the header says it; `data_offsets` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Shard:
    """One open file. `tensors` are in the order of their values."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="np"):  # it checks the header, and that the file holds what it says
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = msgspec.json.decode(file.read(length))
            header.pop("__metadata__", None)
            found = msgspec.convert(header, dict[str, Stored])
            self._file = os.open(path, os.O_RDONLY)
        except (SafetensorError, OSError, msgspec.MsgspecError) as error:
            raise UnsupportedModel(f"{path} is corrupt or truncated: {error}{taken_for(path)}") from None
        self.tensors = dict(sorted(found.items(), key=lambda item: item[1].data_offsets))
        self._begin = 8 + length

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def stored(self, name: str) -> Stored:
        if name not in self.tensors:
            raise UnsupportedModel(f"{self.path}: tensor {name} cannot be read: the file does not contain it")
        return self.tensors[name]

    def read(self, name: str, into: Tensor) -> None:
        """Fills `into`, a dense host tensor of the stored dtype and shape; large ones on several threads."""
        begin, end = self.tensors[name].data_offsets
        if begin == end:
            return
        bytes_ = into.view(-1).view(torch.uint8).numpy().data
        pieces = range(0, end - begin, PIECE)
        try:
            if len(pieces) == 1:
                self._read_piece(bytes_, self._begin + begin)
            else:
                list(
                    _readers().map(
                        lambda at: self._read_piece(bytes_[at : at + PIECE], self._begin + begin + at), pieces
                    )
                )
        except OSError as error:
            raise UnsupportedModel(f"{self.path}: tensor {name} cannot be read: {error}") from None

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The bytes of a tensor in order; each piece is written over by the next."""
        begin, end = self.tensors[name].data_offsets
        held = torch.empty(min(PIECE, end - begin), dtype=torch.uint8)
        for at in range(begin, end, PIECE):
            piece = held[: end - at]
            try:
                self._read_piece(piece.numpy().data, self._begin + at)
            except OSError as error:
                raise UnsupportedModel(f"{self.path}: tensor {name} cannot be read: {error}") from None
            yield piece

    def _read_piece(self, into: memoryview, at: int) -> None:
        while into:
            got = os.preadv(self._file, [into], at)
            if not got:
                raise OSError("the file ends before it")
            into, at = into[got:], at + got


@cache
def _readers() -> ThreadPoolExecutor:
    """Their copies from the file cache go at once, and so do their waits for a disk."""
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="read-weights")


class Memory:
    """Host tensors whose memory is used again once the last view of them is gone: new pages cost as much as reading.

    `lent` is how many bytes are in tensors that live.
    """

    def __init__(self) -> None:
        self.lent = 0
        self._idle: dict[int, list[np.ndarray]] = defaultdict(list)
        self._bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if self._idle[size]:
            whole = self._idle[size].pop()
            self._bytes -= size
        elif size < MAPPED:
            whole = np.empty(size, dtype=np.uint8)
        else:  # NumPy would ask for huge pages, which cost more to get than a few readings of the memory would gain
            whole = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
        self.lent += size
        view = whole[:]  # the tensor holds on to it, and nobody else
        # A tensor that a model keeps must not keep this, and what lies idle here, too.
        weakref.finalize(view, Memory._ended, weakref.ref(self), whole).atexit = False
        return torch.from_numpy(view).view(dtype).view(shape)

    @staticmethod
    def _ended(memory: weakref.ref[Memory], whole: np.ndarray) -> None:
        self = memory()
        if self is None:
            return
        self.lent -= whole.nbytes
        if self._bytes + whole.nbytes <= IDLE_BYTES:
            self._idle[whole.nbytes].append(whole)
            self._bytes += whole.nbytes
