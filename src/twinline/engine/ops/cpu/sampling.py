"""What a sampler must look at, in C++ (csrc/cpu/sampling.h): rows' maxima, and a few candidates of a whole vocabulary.

Chooses no token: `engine/draw.py` does, with the same arithmetic on every device. No op of a model, so no provider.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinline.engine.ops.cpu.library import KINDS, call, empty, why_not

RACE_ROOM = 256
MASS_ERROR = 2e-5  # relative: the exponential's, the sum's, and that of a product with 1 / temperature, four times over


def serves(logits: Tensor) -> bool:
    """Whether these kernels can look at these logits: two dimensions, on the host, rows without gaps."""
    return logits.device.type == "cpu" and logits.dtype in KINDS and logits.stride(-1) == 1 and why_not() is None


def row_maxima(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row, float32, and where it is first; NaN if there is one, as `torch.max`."""
    rows, size = logits.shape
    best, at = empty(rows, dtype=torch.float32), empty(rows, dtype=torch.int64)
    call("row_maxima", logits, best, at, KINDS[logits.dtype], rows, size, logits.stride(0))
    return best, at


def race_winners(logits: Tensor, keys_N2: Tensor, temperature_N: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row, and the token that its noise makes the winner: nearly always the one that
    `engine/draw.py` would draw without filters. The likeliest where the temperature is 0."""
    rows, size = logits.shape
    best, at = empty(rows, dtype=torch.float32), empty(rows, dtype=torch.int64)
    call("race_winners", logits, keys_N2, temperature_N, best, at, KINDS[logits.dtype], rows, size, logits.stride(0))
    return best, at


def race_candidates(logits: Tensor, best: Tensor, whole_N4: Tensor, real_N3: Tensor) -> tuple[Tensor, Tensor]:
    """Ids `[N, RACE_ROOM]` of all tokens that may win with their noise, lowest first, and how many: more than there is
    room for says that some are not there. `whole` is [row, key, key, top_k], `real` [temperature, top_p, min_p]."""
    rows, (_, size) = len(whole_N4), logits.shape
    ids, counts = empty(rows, RACE_ROOM, dtype=torch.int64), empty(rows, dtype=torch.int64)
    call("race_candidates", logits, whole_N4, real_N3, best, ids, counts, KINDS[logits.dtype], rows, size,
         logits.stride(0), RACE_ROOM)  # fmt: skip
    return ids, counts


class Likeliest(NamedTuple):
    """`values` and `ids` `[N, K]`, likeliest first and lowest id first in a tie; `complete` is 0 for a row whose ties
    are too many; `mass` is float64, within `MASS_ERROR` of the sum of exp((logit - best) / temperature)."""

    values_NK: Tensor
    ids_NK: Tensor
    complete_N: Tensor
    mass_N: Tensor | None


def leading_candidates(
    logits: Tensor, best: Tensor, whole_N4: Tensor, real_N3: Tensor, count: int, by_mass: bool
) -> Likeliest:
    """The `count` likeliest tokens of each row; fewer than the vocabulary."""
    rows, (_, size) = len(whole_N4), logits.shape
    values, ids = empty(rows, count, dtype=torch.float32), empty(rows, count, dtype=torch.int64)
    complete = empty(rows, dtype=torch.int64)
    mass = empty(rows, dtype=torch.float64) if by_mass else None
    call("leading_candidates", logits, whole_N4, real_N3, best, values, ids, complete, mass, KINDS[logits.dtype], rows,
         size, logits.stride(0), count)  # fmt: skip
    return Likeliest(values, ids, complete, mass)
