"""Log-probabilities to report: of the model's own distribution, before any bias, penalty, temperature or filter.

Owns a token's log-probability, its rank and the likeliest alternatives. Knows nothing of requests or sampling.

Shapes: T rows (one per token), V vocabulary, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twinline.engine import filters
from twinline.engine.draw import chunk_rows
from twinline.engine.request import TokenLogprob

_SPARE = 32  # candidates beyond those asked for, so that a tie at the last place seldom needs a sort


def token_logprobs(logits_TV: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """One entry per row: `tokens[i]` under the log-softmax of row i, with the `tops[i]` likeliest tokens.

    Rank is 1 plus the number of likelier tokens, so equally likely tokens share a rank. Alternatives come likeliest
    first, lowest id first in a tie; tokens of probability zero are not among them.
    Raises ValueError for a token outside the vocabulary and for a row that is not a distribution (NaN, infinite).
    """
    vocab = logits_TV.shape[-1]
    for token in tokens:
        if not 0 <= token < vocab:
            raise ValueError(f"token id {token} is outside the vocabulary of {vocab}")
    size = chunk_rows(logits_TV)
    found: list[TokenLogprob] = []
    for i in range(0, len(tokens), size):
        rows = logits_TV[i : i + size].float()
        found += _chunk(rows, tokens[i : i + size], tops[i : i + size], first=i)
    return found


def prompt_logprobs(logits_TV: Tensor, targets: list[int], top: int) -> list[TokenLogprob]:
    """Row i of `logits_TV` is what the model said before `targets[i]`; `top` alternatives each."""
    return token_logprobs(logits_TV, targets, [top] * len(targets))


def _chunk(logits_TV: Tensor, tokens: Sequence[int], tops: Sequence[int], first: int) -> list[TokenLogprob]:
    chosen_T1 = torch.tensor(tokens, device=logits_TV.device)[:, None]
    value_T1 = logits_TV.gather(-1, chosen_T1)
    norm_T = logits_TV.logsumexp(-1)
    norms: list[float] = norm_T.tolist()
    for i, norm in enumerate(norms):
        if not math.isfinite(norm):
            raise ValueError(f"the logits of row {first + i} are not a distribution: their log-sum-exp is {norm}")
    logprobs: list[float] = (value_T1[:, 0] - norm_T).tolist()
    ranks: list[int] = ((logits_TV > value_T1).sum(-1) + 1).tolist()
    alternatives = _alternatives(logits_TV, norm_T, tops)
    return [TokenLogprob(*entry) for entry in zip(tokens, logprobs, ranks, alternatives, strict=True)]


def _alternatives(logits_TV: Tensor, norm_T: Tensor, tops: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    if not any(tops):
        return [()] * len(tops)
    lists = _leading(logits_TV, norm_T, max(tops) + _SPARE)
    result = []
    for i, (top, (ids, logprobs, certain)) in enumerate(zip(tops, lists, strict=True)):
        if min(top, logits_TV.shape[-1]) > certain:
            ids, logprobs, _ = _leading(logits_TV[i : i + 1], norm_T[i : i + 1], logits_TV.shape[-1])[0]
        pairs = zip(ids[:top], logprobs[:top], strict=True)
        result.append(tuple((token, logprob) for token, logprob in pairs if logprob > -math.inf))
    return result


def _leading(logits_TV: Tensor, norm_T: Tensor, count: int) -> list[tuple[list[int], list[float], int]]:
    values_TK, ids_TK, certain_T = filters.leading(logits_TV, count)
    logprobs_TK = values_TK - norm_T[:, None]
    return list(zip(ids_TK.tolist(), logprobs_TK.tolist(), certain_T.tolist(), strict=True))
