"""Which tokens top_k, top_p and min_p leave: a prefix of the tokens, likeliest first, lowest id first in a tie.

Owns the order and the length of the prefix. Knows nothing of requests or noise.

Masses are added as integers (probabilities relative to the likeliest token, in units of 2**-40), so a sum does not
depend on the order of its terms: a row keeps the same tokens in any batch, and for any number of candidates.

Shapes: N rows, V vocabulary, K candidates. Logits here are "shifted": (logits - row maximum) / temperature, so <= 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_UNIT = 2.0**40


class Leading(NamedTuple):
    """The K largest logits of each row in order. Only the first `certain_N` are sure to be the right ids: beyond, a tie
    with a token that is not among the K may have been cut either way. The values are right throughout."""

    values_NK: Tensor
    ids_NK: Tensor
    certain_N: Tensor


def leading(logits_NV: Tensor, count: int) -> Leading:
    """The `count` likeliest tokens of each row; the whole vocabulary, sorted, when `count` reaches it."""
    rows, vocab = logits_NV.shape
    if count >= vocab:
        values, ids = torch.sort(logits_NV, dim=-1, descending=True, stable=True)
        return Leading(values, ids, torch.full((rows,), vocab, device=ids.device))
    ids = torch.topk(logits_NV, count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = torch.sort(logits_NV.gather(-1, ids), dim=-1, descending=True, stable=True)
    return Leading(values, ids.gather(-1, order), (values > values[:, -1:]).sum(-1))


def mass(shifted: Tensor) -> Tensor:
    """int64: each token's probability relative to the likeliest one's."""
    return shifted.exp().mul_(_UNIT).to(torch.int64)


def mass_bounds(mass_N: Tensor, error: float, vocab: int) -> tuple[Tensor, Tensor]:
    """Between which `mass` summed over a row must be, from a sum in float64 that is off by `error`, relative.

    `mass` rounds every token's down, so its sum may be lower by one unit for each.
    """
    low_N = (mass_N * ((1 - error) * _UNIT)).floor().to(torch.int64) - vocab
    return low_N.clamp_(min=0), (mass_N * ((1 + error) * _UNIT)).ceil().to(torch.int64)


def kept(shifted_NK: Tensor, total_N: Tensor, vocab: int, top_k_N: Tensor, top_p_N: Tensor, min_p_N: Tensor) -> Tensor:
    """How many of the ordered candidates each row keeps, at least 1.

    A value above `Leading.certain_N` says that these candidates are too few to tell (unless they are all there is).

    top_k: that many (at least `vocab`: off). top_p: the fewest whose mass reaches top_p of what top_k left (1: off).
    min_p: those at least min_p times as likely as the likeliest (0: off). `total_N`: the mass of the whole vocabulary,
    used where top_k is off.
    """
    count = shifted_NK.shape[-1]
    mass_NK = mass(shifted_NK)
    within_NK = torch.arange(count, device=shifted_NK.device) < top_k_N[:, None]
    total_N = torch.where(top_k_N < vocab, (mass_NK * within_NK).sum(-1), total_N)
    wanted_N = (total_N.to(torch.float32) * top_p_N).to(torch.int64)
    by_mass_N = (mass_NK.cumsum(-1) < wanted_N[:, None]).sum(-1) + 1
    by_mass_N = by_mass_N.masked_fill(top_p_N >= 1, count + 1)
    likely_N = (shifted_NK.exp() >= min_p_N[:, None]).sum(-1)
    by_min_N = likely_N.masked_fill(likely_N == count, count + 1)
    kept_N = torch.minimum(torch.minimum(by_mass_N, by_min_N), top_k_N).clamp_(min=1)
    share_of_unseen_N = (top_p_N < 1) & (top_k_N > count) & (top_k_N < vocab)
    return kept_N.masked_fill_(share_of_unseen_N, count + 1)
