"""Reported log-probabilities: the model's own, with exact ranks and alternatives in order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twinline.engine.request import Request, SamplingParams, TokenLogprob
from twinline.engine.sampler import Sampler, prompt_logprobs


def random_logits(rows: int, vocab: int, step: float = 0.0) -> Tensor:
    """Normal logits; a `step` rounds them, which makes ties."""
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(5)) * 3
    return (logits / step).round() * step if step else logits


def check_entry(entry: TokenLogprob, row: Tensor, token: int, top: int) -> None:
    expected = torch.log_softmax(row.double(), -1).tolist()
    assert entry.token == token
    assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
    assert entry.rank == 1 + sum(v > row[token] for v in row)
    assert [t for t, _ in entry.top] == sorted(range(len(row)), key=lambda t: (-row[t], t))[:top]
    assert [v for _, v in entry.top] == pytest.approx([expected[t] for t, _ in entry.top], abs=1e-5)


def test_logprobs_are_the_models_own() -> None:
    """Whatever bias, penalty or temperature did to the choice."""
    logits = random_logits(4, 200)
    settings = [
        SamplingParams(temperature=0, logprobs=0),
        SamplingParams(),
        SamplingParams(temperature=0.2, top_k=3, logprobs=20),
        SamplingParams(temperature=0, logit_bias=((150, 30.0),), logprobs=2),
    ]
    requests = [Request(str(i), [1, 2], params) for i, params in enumerate(settings)]
    sampled = Sampler(200).sample(logits, requests)
    assert sampled.tokens[3] == 150
    for i, req in enumerate(requests):
        entry = sampled.logprobs[i]
        if req.params.logprobs is None:
            assert entry is None
        else:
            assert entry is not None
            check_entry(entry, logits[i], sampled.tokens[i], req.params.logprobs)


@pytest.mark.parametrize("vocab", [15, 2000])
def test_prompt_logprobs(vocab: int) -> None:
    logits = random_logits(6, vocab, step=0.5).bfloat16()
    logits[5] = 0.0  # all equal: the alternatives are the lowest ids
    targets = [0, 1, 2, 3, 14, 14]
    for top in (0, 1, 5):
        for i, entry in enumerate(prompt_logprobs(logits, targets, top)):
            check_entry(entry, logits[i].float(), targets[i], top)
    assert prompt_logprobs(logits[:0], [], 3) == []
    with pytest.raises(ValueError, match="outside the vocabulary"):
        prompt_logprobs(logits, [vocab] * 6, 1)
    logits[4, 0] = math.nan
    with pytest.raises(ValueError, match="row 4"):
        prompt_logprobs(logits, targets, 1)


def test_impossible_tokens_are_no_alternatives() -> None:
    row = torch.tensor([[0.0, -math.inf, 1.0]])
    assert [t for t, _ in prompt_logprobs(row, [0], 3)[0].top] == [2, 0]
