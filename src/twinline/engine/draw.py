"""Draw one token per row at a temperature, through top_k, top_p and min_p, with keyed noise.

Owns how much of a row is looked at. Knows nothing of penalties, greedy rows or log-probabilities.

Rows without a filter add noise to the whole vocabulary. Rows with one look at their likeliest few hundred tokens, which
nearly always hold all that the filters keep; rows where they do not try again with more, at last with all, sorted. A
row's token does not depend on the width at which it was found.

Shapes: N rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine import filters, noise
from twinline.engine.request import Request, SamplingParams

WIDTHS = (256, 4096)
_COLDEST = 1e-6  # below it a division would leave float32; the likeliest token wins in any case
_CHUNK_ELEMENTS = 2**24  # bounds the temporaries: a few int64 tensors of this many elements
_CHUNK_ELEMENTS_CPU = 2**19  # the same, so that they stay in cache


def filtered(params: SamplingParams, vocab: int) -> bool:
    return params.top_p < 1 or params.min_p > 0 or 0 < params.top_k < vocab


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a tensor of logits to draw for, and each one's settings."""

    index_N: Tensor
    keys_N2: Tensor
    temperature_N: Tensor
    top_k_N: Tensor
    top_p_N: Tensor
    min_p_N: Tensor
    by_mass: bool  # some row needs the mass of the whole vocabulary

    @classmethod
    def of(cls, rows: Sequence[int], requests: Sequence[Request], vocab: int, device: torch.device) -> _Rows:
        params = [r.params for r in requests]
        words = [noise.key(r.params.seed, r.known) for r in requests]
        whole = torch.tensor(
            [(i, *w, min(p.top_k or vocab, vocab)) for i, w, p in zip(rows, words, params, strict=True)],
            dtype=torch.int64,
        ).to(device)
        real = torch.tensor([(max(p.temperature, _COLDEST), p.top_p, p.min_p) for p in params], dtype=torch.float32).to(
            device
        )
        by_mass = any(p.top_p < 1 and not 0 < p.top_k < vocab for p in params)
        return cls(whole[:, 0], whole[:, 1:3], real[:, 0], whole[:, 3], real[:, 1], real[:, 2], by_mass)

    def chunks(self, size: int) -> Iterator[_Rows]:
        for i in range(0, len(self.index_N), size):
            s = slice(i, i + size)
            yield _Rows(self.index_N[s], self.keys_N2[s], self.temperature_N[s], self.top_k_N[s], self.top_p_N[s],
                        self.min_p_N[s], self.by_mass)  # fmt: skip

    def shift(self, logits: Tensor, best_N: Tensor) -> Tensor:
        """(logits - maximum) / temperature, one row per row of this, in place."""
        return logits.sub_(best_N[:, None]).div_(self.temperature_N[:, None])


def chunk_rows(logits: Tensor) -> int:
    """How many rows of these logits to work on at once."""
    elements = _CHUNK_ELEMENTS_CPU if logits.device.type == "cpu" else _CHUNK_ELEMENTS
    return max(1, elements // logits.shape[-1])


def draw(logits: Tensor, best: Tensor, rows: Sequence[int], requests: Sequence[Request]) -> list[int]:
    """A token for each of `rows` of `logits` (any number of rows by V); `best` holds every row's maximum, finite."""
    vocab, device = logits.shape[-1], logits.device
    tokens = [-1] * len(rows)
    pending: list[int] = []
    free: list[int] = []
    for n, request in enumerate(requests):
        (pending if filtered(request.params, vocab) else free).append(n)
    if free:
        selected = _Rows.of([rows[n] for n in free], [requests[n] for n in free], vocab, device)
        for n, token in zip(free, _draw_from_all(logits, best, selected), strict=True):
            tokens[n] = token
    for width in (*WIDTHS, vocab):
        if not pending:
            break
        selected = _Rows.of([rows[n] for n in pending], [requests[n] for n in pending], vocab, device)
        found = _draw_from_leading(logits, best, selected, min(width, vocab))
        for n, token in zip(pending, found, strict=True):
            tokens[n] = token
        pending = [n for n in pending if tokens[n] < 0]
    return tokens


def _draw_from_all(logits: Tensor, best: Tensor, rows: _Rows) -> list[int]:
    ids_V = torch.arange(logits.shape[-1], device=logits.device)
    tokens = []
    for part in rows.chunks(chunk_rows(logits)):
        scores_NV = part.shift(logits[part.index_N].float(), best[part.index_N])
        tokens.append(scores_NV.add_(noise.gumbel(part.keys_N2, ids_V)).max(-1).indices)
    return torch.cat(tokens).tolist()


def _draw_from_leading(logits: Tensor, best: Tensor, rows: _Rows, width: int) -> list[int]:
    """-1 where `width` candidates do not hold all that the row's filters keep."""
    vocab = logits.shape[-1]
    tokens = []
    for part in rows.chunks(chunk_rows(logits)):
        logits_NV, best_N = logits[part.index_N].float(), best[part.index_N]
        values_NK, ids_NK, certain_N = filters.leading(logits_NV, width)
        values_NK = part.shift(values_NK, best_N)
        total_N = torch.zeros_like(certain_N)
        if part.by_mass:
            total_N = filters.mass(part.shift(logits_NV, best_N)).sum(-1)
        kept_N = filters.kept(values_NK, total_N, vocab, part.top_k_N, part.top_p_N, part.min_p_N)
        if width == vocab:
            kept_N = kept_N.clamp_(max=vocab)
        outside_NK = torch.arange(width, device=logits.device) >= kept_N[:, None]
        scores_NK = values_NK.add_(noise.gumbel(part.keys_N2, ids_NK)).masked_fill_(outside_NK, -torch.inf)
        token_N = ids_NK.gather(-1, scores_NK.max(-1).indices[:, None])[:, 0]
        tokens.append(token_N.masked_fill_(kept_N > certain_N, -1))
    return torch.cat(tokens).tolist()
