"""Small unsigned numbers inside 32-bit words: the orders in which quantisers pack them.

Owns the bits. Knows no tensor's name. `bits` is 4 or 8; a word holds 32 / bits numbers, the first in the lowest bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Which of eight neighbouring columns AutoAWQ's `gemm` puts into each nibble of a word, from the lowest on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(words: Tensor, bits: int, axis: int, count: int | None = None) -> Tensor:
    """Numbers 0 .. 2**bits - 1 as int16, from int32 words along `axis`; the first `count` of them."""
    axis %= words.ndim
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shifts = shifts.view(-1, *[1] * (words.ndim - axis - 1))
    # An arithmetic shift drags the sign along; the mask takes it off again.
    numbers = ((words.unsqueeze(axis + 1) >> shifts) & (2**bits - 1)).to(torch.int16).flatten(axis, axis + 1)
    return numbers if count is None else numbers.narrow(axis, 0, count)


def pack(numbers: Tensor, bits: int, axis: int) -> Tensor:
    """The opposite: int32 words, the last filled up with zeros."""
    axis %= numbers.ndim
    each = 32 // bits
    missing = -numbers.shape[axis] % each
    if missing:
        shape = list(numbers.shape)
        shape[axis] = missing
        numbers = torch.cat((numbers, numbers.new_zeros(shape)), axis)
    apart = numbers.unflatten(axis, (-1, each))
    words = torch.zeros(apart.select(axis + 1, 0).shape, dtype=torch.int32)
    for place in range(each):
        words |= apart.select(axis + 1, place).to(torch.int32) << (bits * place)
    return words


def from_awq(words: Tensor) -> Tensor:
    """Numbers `[rows, columns]` from AutoAWQ's words `[rows, columns / 8]`."""
    nibbles = unpack(words, 4, 1).view(len(words), -1, 8)
    numbers = torch.empty_like(nibbles)
    numbers[..., AWQ_ORDER] = nibbles
    return numbers.flatten(1)
