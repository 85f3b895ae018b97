"""From the hidden states of a text's positions to its one vector.

Owns the arithmetic, in float32, and what a text keeps between its chunks. Knows no order of service: it is told which
positions a step computed. The modes are those of sentence-transformers' `Pooling`, and every position counts: nothing
here is padded. Its `Normalize` divides by the L2 norm, of at least 1e-12 (torch's `normalize`).

Shapes: N rows of a step, T of them one text's, X hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twinline.engine.batch import Batch
from twinline.engine.scheduler import Work
from twinline.facts.pooling import Pooling

LEAST_NORM = 1e-12


class Pool:
    """One text's vector while it is made. Positions come in order; position 0 begins it anew, after a preemption."""

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._state_X: Tensor | None = None
        self._count = 0

    def take(self, hidden_TX: Tensor, start: int) -> None:
        """The last-norm states of the positions from `start` on. What is kept of them is a copy, for a step may use
        their memory again, and of one row where one is enough: a view would hold the whole chunk."""
        mode, before = self.pooling.mode, self._state_X if start else None
        self._count = start + len(hidden_TX)
        if mode == "cls" and before is not None:
            return
        if mode in ("cls", "lasttoken"):
            self._state_X = hidden_TX[0 if mode == "cls" else -1].to(torch.float32, copy=True)
            return
        rows = hidden_TX.to(torch.float32, copy=True)
        if mode == "max":
            state = rows.amax(0) if before is None else torch.maximum(before, rows.amax(0))
        else:
            if mode == "weightedmean":  # a position's weight is its number, from 1
                rows *= torch.arange(start + 1, self._count + 1, dtype=torch.float32, device=rows.device)[:, None]
            state = rows.sum(0) if before is None else before + rows.sum(0)
        self._state_X = state

    def vector(self) -> bytes | None:
        """Little-endian float32; None where a value is NaN or infinite. Of a text whose last position was taken."""
        assert self._state_X is not None, "no position was computed"
        vector, count = self._state_X, self._count
        if self.pooling.mode == "mean":
            vector = vector / count
        elif self.pooling.mode == "mean_sqrt_len_tokens":
            vector = vector / math.sqrt(count)
        elif self.pooling.mode == "weightedmean":
            vector = vector / (count * (count + 1) / 2)
        if self.pooling.normalize:
            vector = vector / vector.norm().clamp_min(LEAST_NORM)
        if not bool(vector.isfinite().all()):
            return None
        made: bytes = vector.cpu().numpy().astype("<f4").tobytes()
        return made


def gathered(batch: Batch, hidden_NX: Tensor) -> dict[Work, bytes | None]:
    """Gives each text of a step its rows; the vectors of those whose last position was among them."""
    whole: dict[Work, bytes | None] = {}
    for work, end_row in zip(batch.work, batch.ends, strict=True):
        pool = work.request.pool
        if pool is None:
            continue
        pool.take(hidden_NX[end_row + 1 - work.count : end_row + 1], work.start)
        if work.samples:
            whole[work] = pool.vector()
    return whole
