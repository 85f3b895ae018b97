"""Writing a safetensors file tensor by tensor: its header is known before its values are.

Owns the bytes of one file, so that no more than one matrix is in memory. Format: 8 bytes of little-endian length, a
JSON header filled up with blanks to a multiple of 8, then the values, each where the header says.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from twinline.engine.quant.variants import NAMES


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written; `stored` is its type as safetensors spells it."""

    name: str
    stored: str
    itemsize: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class ShardFile:
    """One file being written; `add` takes its tensors in the order of the entries."""

    def __init__(self, path: Path, entries: list[Entry]):
        self._left = list(reversed(entries))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for entry in entries:
            header[entry.name] = {
                "dtype": entry.stored,
                "shape": list(entry.shape),
                "data_offsets": [at, at + entry.bytes],
            }
            at += entry.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def add(self, name: str, tensor: Tensor) -> None:
        entry = self._left.pop()
        stored = NAMES.get(tensor.dtype, entry.stored)
        if (entry.name, entry.shape, entry.stored) != (name, tuple(tensor.shape), stored):
            raise AssertionError(f"{name} {tuple(tensor.shape)} {stored} comes where {entry} belongs")
        self._file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        assert not self._left, f"{len(self._left)} tensors are missing"
        self.close()

    def close(self) -> None:
        self._file.close()
