"""Memory for the results of recorded steps: a result takes a place, and gives it back when its last tensor dies.

Recorded steps of one arena may share places with each other and within themselves: a replay runs the kernels in the
order of the recording, so a place is written again only after its last reader. What must outlive a step is a tensor
that lives on.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # a cache line, and the widest vector
CHUNK = 16 * 2**20


class Arena:
    def __init__(self) -> None:
        self.bytes = 0  # taken from the system, which gives them when they are first written
        self._chunks: list[np.ndarray] = []
        self._free: list[tuple[int, int, int]] = []  # (chunk, begin, end), in order, never touching

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that is not written yet."""
        size = dtype.itemsize
        for n in shape:
            size *= n
        chunk, begin, end = self._take(-(-max(size, 1) // ALIGNMENT) * ALIGNMENT)
        place = self._chunks[chunk][begin : begin + size]
        weakref.finalize(place, self._give_back, chunk, begin, end).atexit = False
        return torch.from_numpy(place).view(dtype).view(*shape)

    def _take(self, size: int) -> tuple[int, int, int]:
        for i, (chunk, begin, end) in enumerate(self._free):
            if end - begin >= size:
                if end - begin == size:
                    del self._free[i]
                else:
                    self._free[i] = (chunk, begin + size, end)
                return chunk, begin, begin + size
        bytes_ = max(size, CHUNK)
        whole = np.empty(bytes_ + ALIGNMENT, dtype=np.uint8)
        skipped = -whole.ctypes.data % ALIGNMENT
        self._chunks.append(whole[skipped : skipped + bytes_])
        self.bytes += bytes_
        if size < bytes_:
            bisect.insort(self._free, (len(self._chunks) - 1, size, bytes_))
        return len(self._chunks) - 1, 0, size

    def _give_back(self, chunk: int, begin: int, end: int) -> None:
        i = bisect.bisect(self._free, (chunk, begin, end))
        if i < len(self._free) and self._free[i][:2] == (chunk, end):
            end = self._free.pop(i)[2]
        if i and (self._free[i - 1][0], self._free[i - 1][2]) == (chunk, begin):
            i -= 1
            begin = self._free.pop(i)[1]
        self._free.insert(i, (chunk, begin, end))
