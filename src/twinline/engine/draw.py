"""Draw one token per row at a temperature, through top_k, top_p and min_p, with keyed noise.

Owns how much of a row is looked at. Knows nothing of penalties, greedy rows or log-probabilities.

Rows without a filter add noise to the whole vocabulary. Rows with one look at their likeliest few hundred tokens, which
nearly always hold all that the filters keep; rows where they do not try again with more, at last with all, sorted. A
row's token does not depend on the width at which it was found.

Where the host's kernels serve they find the candidates, of a race too. The arithmetic that decides among them is that
of this file, and what kernels know only nearly (a mass) is computed where it matters: a token is the same either way.

Shapes: N rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine import filters, noise
from twinline.engine.ops.cpu import sampling as host
from twinline.engine.request import Request, SamplingParams

WIDTHS = (256, 4096)
COLDEST = 1e-6  # below it a division would leave float32; the likeliest token wins in any case
_CHUNK_ELEMENTS = 2**24  # bounds the temporaries: a few int64 tensors of this many elements
_CHUNK_ELEMENTS_CPU = 2**19  # the same, so that they stay in cache


def filtered(params: SamplingParams, vocab: int) -> bool:
    return params.top_p < 1 or params.min_p > 0 or 0 < params.top_k < vocab


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a tensor of logits to draw for, and each one's settings."""

    whole_N4: Tensor  # row, two words of the noise's key, top_k
    real_N3: Tensor  # temperature, top_p, min_p
    by_mass: bool  # some row needs the mass of the whole vocabulary

    @classmethod
    def of(cls, rows: Sequence[int], requests: Sequence[Request], vocab: int, device: torch.device) -> _Rows:
        params = [r.params for r in requests]
        words = [noise.key(r.params.seed, r.known) for r in requests]
        whole = torch.tensor(
            [(i, *w, min(p.top_k or vocab, vocab)) for i, w, p in zip(rows, words, params, strict=True)],
            dtype=torch.int64,
        ).to(device)
        real = torch.tensor([(max(p.temperature, COLDEST), p.top_p, p.min_p) for p in params], dtype=torch.float32).to(
            device
        )
        return cls(whole, real, any(p.top_p < 1 and not 0 < p.top_k < vocab for p in params))

    @property
    def index_N(self) -> Tensor:
        return self.whole_N4[:, 0]

    @property
    def keys_N2(self) -> Tensor:
        return self.whole_N4[:, 1:3]

    def chunks(self, size: int) -> Iterator[_Rows]:
        for i in range(0, len(self.whole_N4), size):
            yield _Rows(self.whole_N4[i : i + size], self.real_N3[i : i + size], self.by_mass)

    def only(self, which_N: Tensor) -> _Rows:
        return _Rows(self.whole_N4[which_N], self.real_N3[which_N], self.by_mass)

    def shift(self, logits: Tensor, best_N: Tensor) -> Tensor:
        """(logits - maximum) / temperature, one row per row of this, in place."""
        return logits.sub_(best_N[:, None]).div_(self.real_N3[:, :1])

    def kept(self, shifted_NK: Tensor, total_N: Tensor, vocab: int) -> Tensor:
        return filters.kept(shifted_NK, total_N, vocab, self.whole_N4[:, 3], self.real_N3[:, 1], self.real_N3[:, 2])


def chunk_rows(logits: Tensor) -> int:
    """How many rows of these logits to work on at once."""
    elements = _CHUNK_ELEMENTS_CPU if logits.device.type == "cpu" else _CHUNK_ELEMENTS
    return max(1, elements // logits.shape[-1])


def maxima(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest logit, float32, and the lowest id that has it; NaN if there is one."""
    if host.serves(logits):
        return host.row_maxima(logits)
    best, token = logits.max(-1)  # unlike argmax it promises the first of equal maxima, and it carries a NaN through
    return best.float(), token


def winners(logits: Tensor, keys_N2: Tensor, temperature_N: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest logit, float32, and its token with the noise of its key, for a guess: without filters, nothing
    read by the host, and the last digits of the noise may differ. The likeliest where the temperature is 0."""
    if host.serves(logits):
        return host.race_winners(logits, keys_N2, temperature_N)
    best, likeliest = maxima(logits)
    scores_NV = (logits.float() - best[:, None]) / temperature_N.clamp(min=COLDEST)[:, None]
    token = scores_NV.add_(noise.gumbel(keys_N2, torch.arange(logits.shape[-1], device=logits.device))).argmax(-1)
    return best, torch.where(temperature_N > 0, token, likeliest)


def draw(logits: Tensor, best: Tensor, rows: Sequence[int], requests: Sequence[Request]) -> list[int]:
    """A token for each of `rows` of `logits` (any number of rows by V); `best` holds every row's maximum, float32 and
    finite."""
    vocab, device = logits.shape[-1], logits.device
    tokens = [-1] * len(rows)
    pending: list[int] = []
    free: list[int] = []
    for n, request in enumerate(requests):
        (pending if filtered(request.params, vocab) else free).append(n)
    quick = host.serves(logits)
    if free and quick:
        selected = _Rows.of([rows[n] for n in free], [requests[n] for n in free], vocab, device)
        for n, token in zip(free, _draw_from_candidates(logits, best, selected), strict=True):
            tokens[n] = token
        free = [n for n in free if tokens[n] < 0]
    if free:
        selected = _Rows.of([rows[n] for n in free], [requests[n] for n in free], vocab, device)
        for n, token in zip(free, _draw_from_all(logits, best, selected), strict=True):
            tokens[n] = token
    for width in (*WIDTHS, vocab):
        if not pending:
            break
        selected = _Rows.of([rows[n] for n in pending], [requests[n] for n in pending], vocab, device)
        among = _draw_from_likeliest if quick and width < vocab else _draw_from_leading
        for n, token in zip(pending, among(logits, best, selected, min(width, vocab)), strict=True):
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


def _draw_from_candidates(logits: Tensor, best: Tensor, rows: _Rows) -> list[int]:
    """The same from the few tokens that may win; -1 where they are too many."""
    ids_NK, count_N = host.race_candidates(logits, best, rows.whole_N4, rows.real_N3)
    counts: list[int] = count_N.tolist()
    width = min(max(counts), ids_NK.shape[-1])
    outside_NK = torch.arange(width) >= count_N[:, None]
    ids_NK = ids_NK[:, :width].masked_fill(outside_NK, 0)
    values_NK = rows.shift(logits[rows.index_N[:, None], ids_NK].float(), best[rows.index_N])
    found = _race(values_NK, ids_NK, rows.keys_N2, outside_NK).tolist()
    return [token if count <= width else -1 for token, count in zip(found, counts, strict=True)]


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
        kept_N = part.kept(values_NK, total_N, vocab)
        if width == vocab:
            kept_N = kept_N.clamp_(max=vocab)
        tokens.append(_race_kept(values_NK, ids_NK, part, kept_N).masked_fill_(kept_N > certain_N, -1))
    return torch.cat(tokens).tolist()


def _draw_from_likeliest(logits: Tensor, best: Tensor, rows: _Rows, width: int) -> list[int]:
    """The same with candidates and masses by the host's kernels.

    A mass is known within bounds: where they differ in what is kept it is computed exactly.
    """
    vocab, best_N = logits.shape[-1], best[rows.index_N]
    values_NK, ids_NK, complete_N, mass_N = host.leading_candidates(
        logits, best, rows.whole_N4, rows.real_N3, width, rows.by_mass
    )
    values_NK = rows.shift(values_NK, best_N)
    if mass_N is None:
        kept_N = rows.kept(values_NK, torch.zeros_like(complete_N), vocab)
    else:
        low_N, high_N = filters.mass_bounds(mass_N, host.MASS_ERROR, vocab)
        kept_N = rows.kept(values_NK, low_N, vocab)
        open_N = kept_N != rows.kept(values_NK, high_N, vocab)
        if open_N.any():
            part = rows.only(open_N)
            total_N = filters.mass(part.shift(logits[part.index_N].float(), best_N[open_N])).sum(-1)
            kept_N[open_N] = part.kept(values_NK[open_N], total_N, vocab)
    token_N = _race_kept(values_NK, ids_NK, rows, kept_N)
    return token_N.masked_fill_((kept_N > width) | (complete_N == 0), -1).tolist()


def _race_kept(values_NK: Tensor, ids_NK: Tensor, rows: _Rows, kept_N: Tensor) -> Tensor:
    outside_NK = torch.arange(values_NK.shape[-1], device=values_NK.device) >= kept_N[:, None]
    return _race(values_NK, ids_NK, rows.keys_N2, outside_NK)


def _race(values_NK: Tensor, ids_NK: Tensor, keys_N2: Tensor, outside_NK: Tensor) -> Tensor:
    """The winner's id in each row: the largest of `values` plus noise, the first of equals. Writes into `values`."""
    scores_NK = values_NK.add_(noise.gumbel(keys_N2, ids_NK)).masked_fill_(outside_NK, -torch.inf)
    return ids_NK.gather(-1, scores_NK.max(-1).indices[:, None])[:, 0]
