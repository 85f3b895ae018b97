"""What a request asks to change in its own logits: bias, no stop before min_tokens, penalties for tokens seen.

Owns which tokens each request has seen and how often, kept up by the new tokens of each step only. Knows nothing of
sampling.

What is seen stays on the host as packed arrays and goes to the device as one flat list per step, for the rows concerned
only: no table as wide as the vocabulary is kept per request.

Shapes: M rows (requests that change something), V vocabulary, F all changed logits of all rows, flat.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinline.engine.request import Request

_LARGEST_BIAS = 1e30  # an infinite bias would make the row's maximum infinite, and differences to it NaN


@dataclass(slots=True)
class _Seen:
    """A request's own changes, as packed arrays. `ids` are unique, `counts` how often each is in the output."""

    arrival: int  # a new request under an old id is not the old request
    bias_ids: array[int]
    biases: array[float]
    stops: array[int]
    ids: array[int] = field(default_factory=lambda: array("q"))
    counts: array[float] = field(default_factory=lambda: array("f"))
    slots: dict[int, int] = field(default_factory=dict)
    taken: int = 0  # output tokens counted so far

    @classmethod
    def of(cls, request: Request, vocab: int) -> _Seen:
        params = request.params
        bias = {token: min(value, _LARGEST_BIAS) for token, value in params.logit_bias if 0 <= token < vocab}
        stops = sorted(token for token in params.stop_token_ids if 0 <= token < vocab)
        seen = cls(request.arrival, array("q", bias), array("f", bias.values()), array("q", stops))
        if params.repetition_penalty != 1:
            seen._add(request.prompt, 0, vocab)
        return seen

    def take(self, output: Sequence[int], vocab: int) -> None:
        self._add(output[self.taken :], 1, vocab)
        self.taken = len(output)

    def _add(self, tokens: Iterable[int], count: int, vocab: int) -> None:
        for token in tokens:
            if not 0 <= token < vocab:
                continue
            slot = self.slots.setdefault(token, len(self.ids))
            if slot == len(self.ids):
                self.ids.append(token)
                self.counts.append(0)
            self.counts[slot] += count


def _below_min(request: Request) -> bool:
    return len(request.output) < request.params.min_tokens and bool(request.params.stop_token_ids)


def _penalised(request: Request) -> bool:
    params = request.params
    return params.penalised and (bool(request.output) or params.repetition_penalty != 1)


class Penalties:
    """Bias, min_tokens and penalties for the requests of an engine, with what each has seen."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        self._seen: dict[str, _Seen] = {}

    def touches(self, request: Request) -> bool:
        """Whether the request's next logits change at all."""
        return bool(request.params.logit_bias) or _penalised(request) or _below_min(request)

    def forget(self, request_id: str) -> None:
        self._seen.pop(request_id, None)

    def apply(self, logits_MV: Tensor, requests: Sequence[Request]) -> None:
        """Change row i for `requests[i]`, in place: bias, then min_tokens, then penalties. float32, contiguous."""
        seen = [self._state(request) for request in requests]
        flat = logits_MV.view(-1)
        self._bias(flat, seen)
        self._mask_stops(flat, requests, seen)
        self._penalise(flat, requests, seen)

    def _state(self, request: Request) -> _Seen:
        seen = self._seen.get(request.id)
        if seen is None or seen.arrival != request.arrival or seen.taken > len(request.output):
            seen = self._seen[request.id] = _Seen.of(request, self._vocab)
        if request.params.penalised:
            seen.take(request.output, self._vocab)
        return seen

    def _bias(self, flat: Tensor, seen: Sequence[_Seen]) -> None:
        rows = [i for i, s in enumerate(seen) if s.bias_ids]
        if rows:
            at_F = self._positions(rows, [seen[i].bias_ids for i in rows])[1].to(flat.device)
            flat[at_F] += _packed([seen[i].biases for i in rows], torch.float32).to(flat.device)

    def _mask_stops(self, flat: Tensor, requests: Sequence[Request], seen: Sequence[_Seen]) -> None:
        rows = [i for i, request in enumerate(requests) if _below_min(request) and seen[i].stops]
        if rows:
            at_F = self._positions(rows, [seen[i].stops for i in rows])[1].to(flat.device)
            flat[at_F] = -torch.inf

    def _penalise(self, flat: Tensor, requests: Sequence[Request], seen: Sequence[_Seen]) -> None:
        rows = [i for i, request in enumerate(requests) if request.params.penalised and seen[i].ids]
        if not rows:
            return
        params = [requests[i].params for i in rows]
        nth_F, at_F = (t.to(flat.device) for t in self._positions(rows, [seen[i].ids for i in rows]))
        count_F = _packed([seen[i].counts for i in rows], torch.float32).to(flat.device)
        factors = torch.tensor(
            [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for p in params], dtype=torch.float32
        ).to(flat.device)
        repetition_F, frequency_F, presence_F = factors[nth_F].unbind(-1)
        old_F = flat[at_F]
        new_F = torch.where(old_F > 0, old_F / repetition_F, old_F * repetition_F)
        flat[at_F] = new_F - frequency_F * count_F - presence_F * (count_F > 0)

    def _positions(self, rows: Sequence[int], ids: Sequence[array[int]]) -> tuple[Tensor, Tensor]:
        """For every id of every row: which of `rows` it belongs to, and its place in the flat logits. On the host."""
        nth_F = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(a) for a in ids]))
        return nth_F, torch.tensor(rows)[nth_F] * self._vocab + _packed(ids, torch.int64)


def _packed(arrays: Sequence[array[int]] | Sequence[array[float]], dtype: torch.dtype) -> Tensor:
    """The arrays end to end. A copy: an array that lends its memory to a tensor cannot grow."""
    return torch.frombuffer(bytearray(b"".join(arrays)), dtype=dtype)
