"""A checkpoint folder as one thing: any of its tensors by name, whichever file holds it.

Owns the open files. Knows no model and no quantiser. A matrix that is quantized comes as several tensors, and its
scales may lie in another file than its values.

A backbone that was saved alone has its names without `model.` before them (Qwen3-Embedding); here they have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from twinline.engine.models.shards import DTYPES, Memory, Shard, Stored, shards
from twinline.facts.models import UnsupportedModel

WHOLE = "model."


class Checkpoint:
    """`names` of each file, in no order. Files are opened when they are asked for, and stay open until the end."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.files = shards(directory)
        self._bare = _is_bare(name for names in self.files.values() for name in names)
        if self._bare:
            self.files = {file: [WHOLE + name for name in names] for file, names in self.files.items()}
        self.file_of = {name: file for file, names in self.files.items() for name in names}
        self._open: dict[str, Shard] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for shard in self._open.values():
            shard.__exit__(kind, error, at)
        self._open.clear()

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def shard(self, file: str) -> Shard:
        if file not in self._open:
            self._open[file] = Shard(self.directory / file)
        return self._open[file]

    def in_order(self, file: str) -> list[str]:
        """The names in a file, in the order of their values."""
        return [WHOLE + name if self._bare else name for name in self.shard(file).tensors]

    def stored(self, name: str) -> Stored:
        """Type and shape as the file's header says them. Raises UnsupportedModel if there is no such tensor."""
        if name not in self.file_of:
            raise UnsupportedModel(f"the checkpoint lacks {name}")
        return self.shard(self.file_of[name]).stored(self._own(name))

    def _own(self, name: str) -> str:
        """The name in the file."""
        return name.removeprefix(WHOLE) if self._bare else name

    def dtype(self, name: str) -> torch.dtype:
        stored = self.stored(name)
        if stored.dtype not in DTYPES:
            raise UnsupportedModel(f"{name} holds {stored.dtype}, which cannot be read")
        return DTYPES[stored.dtype]

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors have one type, one shape and the same values, to the bit; held in memory by pieces."""
        a, b = self.stored(name), self.stored(other)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        pieces = [self.shard(self.file_of[n]).pieces(self._own(n)) for n in (name, other)]
        return all(torch.equal(ours, theirs) for ours, theirs in zip(*pieces, strict=True))

    def read_into(self, name: str, target: Tensor) -> None:
        """Fills a dense host tensor of the stored dtype and shape."""
        self.shard(self.file_of[name]).read(self._own(name), target)

    def read(self, name: str, memory: Memory | None = None) -> Tensor:
        """The tensor as it is stored, on the host."""
        shape, dtype = self.stored(name).shape, self.dtype(name)
        values = torch.empty(shape, dtype=dtype) if memory is None else memory.empty(shape, dtype)
        self.read_into(name, values)
        return values


def _is_bare(names: Iterable[str]) -> bool:
    """Whether the names are those of a decoder that was saved without what stands around it."""
    found = False
    for name in names:
        if name.startswith((WHOLE, "lm_head.")):
            return False
        found = found or name == "embed_tokens.weight"
    return found
