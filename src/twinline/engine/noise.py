"""Sampling noise that depends on (seed, absolute position, token id) and on nothing else.

Owns the hash and its way to a Gumbel variate. Knows nothing of logits, batches or requests, and keeps no state, so a
token draws the same noise alone or in a batch, among a few candidates or the whole vocabulary, before and after a
preemption, and on whatever line its stream goes on.

Everything is exact integer arithmetic: 32-bit words held in int64, with multipliers below 2**31, so no product
overflows and no device's idea of wraparound matters. The multipliers and shifts of the two-round mix are
`[16 21f0aaad 15 735a2d97 15]`, a low-bias variant found by search (github.com/skeeto/hash-prospector, issue 19).

Shapes: N rows, K tokens per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 2**32 - 1
_MASK64 = 2**64 - 1
_FIRST = 0x21F0AAAD
_SECOND = 0x735A2D97
_LARGEST = 1 - 2**-24  # the largest float32 below 1


def _mix64(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64-bit words."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit words for a place of a stream. Places of one seed never share both."""
    stream = _mix64((seed + 0x9E3779B97F4A7C15) & _MASK64)
    word = _mix64((stream + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64)
    return word >> 32, word & _MASK32


def words(keys_N2: Tensor, tokens: Tensor) -> Tensor:
    """A 32-bit word, as int64, for each row's key and each token id: (N, K) from tokens (K,) or (N, K).

    The second half of the key enters between two mixes: keys whose first halves differ in low bits only would
    otherwise give one another's words, permuted.
    """
    x = tokens ^ keys_N2[:, :1]
    x ^= x >> 16
    x = x.mul_(_FIRST).bitwise_and_(_MASK32)
    x ^= x >> 15
    x = x.mul_(_SECOND).bitwise_and_(_MASK32)
    x ^= x >> 15
    x ^= keys_N2[:, 1:]
    x = x.mul_(_FIRST).bitwise_and_(_MASK32)
    x ^= x >> 16
    return x


def to_uniform(words_NK: Tensor) -> Tensor:
    """float32 strictly inside (0, 1), with a step of 2**-32 near 0 (where the winners of a race are)."""
    return words_NK.to(torch.float32).mul_(2**-32).add_(2**-33).clamp_(max=_LARGEST)


def uniform(keys_N2: Tensor, tokens: Tensor) -> Tensor:
    return to_uniform(words(keys_N2, tokens))


def gumbel(keys_N2: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, (N, K). The argmax of log-probabilities plus it is a sample.

    -log(E) with E = -log(1 - u): the exponential race, written so that the smallest E, the winners, keep their digits.
    """
    return uniform(keys_N2, tokens).neg_().log1p_().neg_().log_().neg_()
