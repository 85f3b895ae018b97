"""From the logits of a step to the next token of each request.

Owns the order in which a request's settings act and what the caller gets back. Knows nothing of models, caches or
scheduling; the steps themselves are in `penalties`, `filters`, `draw`, `noise` and `logprobs`.

In order, for each row:

1. Log-probabilities to report come from the model's own logits, before any change (vLLM's default, `raw_logprobs`).
2. logit_bias is added.
3. Stop tokens are impossible while the output is shorter than min_tokens.
4. Repetition penalty over prompt and output: positive logits divided, others multiplied.
5. Frequency and presence penalties over the output, tokens carried from another line included.
6. A grammar makes all tokens impossible but those that it lets follow, whatever their bias.
7. Temperature 0: the likeliest token, the lowest id in a tie. Else logits are divided by the temperature.
8. top_k, then top_p of what is left, then min_p.
9. The argmax of logits plus Gumbel noise keyed by (seed, absolute position, token id), so a request's token depends on
   nothing else in its batch, and a stream goes on the same after a preemption or on another line.

This is vLLM's order but for min_p, which vLLM applies before top_k; the outcome differs only where top_p acts as well:
here it is a share of what top_k left, there of what min_p left.

Rows that change nothing are read where they are: only rows with a bias, a mask or a penalty are copied.

Shapes: S requests, M of them changed, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.bad_logits import BadLogits
from twinline.engine.draw import draw, maxima
from twinline.engine.grammars.masks import forbid
from twinline.engine.logprobs import prompt_logprobs, token_logprobs
from twinline.engine.penalties import Penalties
from twinline.engine.request import Request, TokenLogprob

__all__ = ["BadLogits", "Sampled", "Sampler", "prompt_logprobs"]


@dataclass(frozen=True)
class Sampled:
    """A step's outcome, one entry per request in the order given; a log-probability only where one was asked for."""

    tokens: list[int]
    logprobs: list[TokenLogprob | None]


class Sampler:
    """Chooses tokens for an engine's requests. Keeps what requests that change their logits have seen; see `forget`."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        self._penalties = Penalties(vocab_size)

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request that has ended. Unknown ids are fine."""
        self._penalties.forget(request_id)

    def sample(self, logits_SV: Tensor, requests: Sequence[Request]) -> Sampled:
        """The next token of each request from its row of logits, float32 or narrower, left as they are.

        Columns beyond the vocabulary (a padded output layer) are ignored. A row in which bias and min_tokens leave no
        token possible falls back to the likeliest token of the unchanged logits, of those that its grammar allows.
        Raises BadLogits, a ValueError naming the requests, where a row has no finite maximum; ValueError for a shape
        that does not fit.
        """
        if logits_SV.dim() != 2 or logits_SV.shape[0] != len(requests) or logits_SV.shape[1] < self._vocab:
            raise ValueError(
                f"logits of shape {tuple(logits_SV.shape)} do not fit {len(requests)} requests "
                f"and a vocabulary of {self._vocab}"
            )
        if not requests:
            return Sampled([], [])
        logits_SV = logits_SV[:, : self._vocab]
        tokens = self._choose(logits_SV, requests)
        return Sampled(tokens, _report(logits_SV, tokens, requests))

    def guess(self, logits_SV: Tensor, requests: Sequence[Request]) -> list[int]:
        """The tokens that `sample` would give for these logits, with nothing reported of them."""
        return self._choose(logits_SV[:, : self._vocab], requests)

    def _choose(self, logits_SV: Tensor, requests: Sequence[Request]) -> list[int]:
        best_S, token_S = maxima(logits_SV)
        tokens: list[int] = token_S.tolist()
        bests: list[float] = best_S.tolist()
        if bad := [r.id for r, best in zip(requests, bests, strict=True) if not math.isfinite(best)]:
            raise BadLogits(bad)
        changed: list[int] = []
        sampled: list[int] = []
        plain: Request | None = None  # the last that was: the rows of a greedy guess are one request's
        for i, request in enumerate(requests):
            if request is plain:
                continue
            if request.constraint is not None or self._penalties.touches(request):
                changed.append(i)
            elif not request.params.greedy:
                sampled.append(i)
            else:
                plain = request
        if sampled:
            drawn = draw(logits_SV, best_S, sampled, [requests[i] for i in sampled])
            for i, token in zip(sampled, drawn, strict=True):
                tokens[i] = token
        if changed:
            chosen = self._choose_changed(_copy(logits_SV, changed), [requests[i] for i in changed])
            for i, token_or_none in zip(changed, chosen, strict=True):
                if token_or_none is not None:
                    tokens[i] = token_or_none
                elif requests[i].constraint is not None:  # its end, before min_tokens
                    only_V = _copy(logits_SV, [i])
                    forbid(only_V, [requests[i]])
                    tokens[i] = int(maxima(only_V)[1])
        return tokens

    def _choose_changed(self, logits_MV: Tensor, requests: Sequence[Request]) -> list[int | None]:
        """The same for rows that may be written to; None where no token is left possible."""
        self._penalties.apply(logits_MV, requests)
        forbid(logits_MV, requests)
        best_M, token_M = maxima(logits_MV)
        bests: list[float] = best_M.tolist()
        if bad := [r.id for r, best in zip(requests, bests, strict=True) if best != best or best == math.inf]:
            raise BadLogits(bad)
        tokens: list[int | None] = [
            None if best == -math.inf else token for best, token in zip(bests, token_M.tolist(), strict=True)
        ]
        rows = [i for i, r in enumerate(requests) if tokens[i] is not None and not r.params.greedy]
        if rows:
            for i, token in zip(rows, draw(logits_MV, best_M, rows, [requests[i] for i in rows]), strict=True):
                tokens[i] = token
        return tokens


def _copy(logits_SV: Tensor, rows: Sequence[int]) -> Tensor:
    return logits_SV[torch.tensor(rows, device=logits_SV.device)].float()


def _report(logits_SV: Tensor, tokens: Sequence[int], requests: Sequence[Request]) -> list[TokenLogprob | None]:
    asked = [(i, r.params.logprobs) for i, r in enumerate(requests) if r.params.logprobs is not None]
    logprobs: list[TokenLogprob | None] = [None] * len(requests)
    if asked:
        rows = [i for i, _ in asked]
        selected = logits_SV if len(rows) == len(requests) else _copy(logits_SV, rows)
        found = token_logprobs(selected, [tokens[i] for i in rows], [top for _, top in asked])
        for i, entry in zip(rows, found, strict=True):
            logprobs[i] = entry
    return logprobs
