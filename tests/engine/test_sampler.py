"""The sampler against a slow, obvious reference in float64, and what must hold whatever the batch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twinline.engine import draw, filters, noise
from twinline.engine.request import Request, SamplingParams
from twinline.engine.sampler import BadLogits, Sampler

SEEDS = st.integers(0, 2**32)


def request(name: str = "r", prompt: Sequence[int] = (1, 2), output: Sequence[int] = (), **params: Any) -> Request:
    params.setdefault("max_tokens", 1000)
    return Request(name, list(prompt), SamplingParams(**params), output=list(output))


def random_logits(rows: int, vocab: int, seed: int, scale: float = 3.0, step: float = 0.0) -> Tensor:
    """Normal logits; a `step` rounds them, which makes ties."""
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale
    return (logits / step).round() * step if step else logits


def sample_one(logits: Tensor, req: Request) -> int:
    return Sampler(logits.shape[-1]).sample(logits[None], [req]).tokens[0]


# The reference: one row, Python floats (float64), one rule after the other.


def adjusted(row: Tensor, req: Request) -> list[float]:
    p, x = req.params, row.double().tolist()
    for token, bias in p.logit_bias:
        if token < len(x):
            x[token] += bias
    if len(req.output) < p.min_tokens:
        for token in p.stop_token_ids:
            if token < len(x):
                x[token] = -math.inf
    for token in set(req.prompt) | set(req.output):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token, count in Counter(req.output).items():
        x[token] -= p.frequency_penalty * count + p.presence_penalty
    return x


def in_order(x: Sequence[float]) -> list[int]:
    return sorted(range(len(x)), key=lambda token: (-x[token], token))


def allowed(x: Sequence[float], p: SamplingParams, slack: float = 0.0) -> list[int]:
    """The tokens that the filters keep, likeliest first, with top_p and min_p off by a rounding error of `slack`."""
    likeliest = max(x)
    weight = [math.exp((v - likeliest) / p.temperature) for v in x]
    ids = in_order(x)
    if p.top_k:
        ids = ids[: p.top_k]
    if p.top_p < 1:
        total, reached, kept = math.fsum(weight[t] for t in ids), 0.0, []
        for token in ids:
            kept.append(token)
            reached += weight[token]
            if reached >= (p.top_p - slack) * total:
                break
        ids = kept
    return [t for t in ids if weight[t] >= p.min_p + slack]


def reference_token(row: Tensor, req: Request, slack: float = 0.0) -> int:
    p, x = req.params, adjusted(row, req)
    if max(x) == -math.inf:
        return in_order(row.tolist())[0]
    if p.temperature == 0:
        return in_order(x)[0]
    first, second = noise.key(p.seed, req.known)
    ids = allowed(x, p, slack)
    u = noise.uniform(torch.tensor([[first, second]]), torch.tensor(ids))[0].double().tolist()
    score = {t: x[t] / p.temperature - math.log(-math.log1p(-ui)) for t, ui in zip(ids, u)}
    return max(ids, key=lambda token: score[token])


def check_against_reference(logits: Tensor, requests: Sequence[Request]) -> None:
    found = Sampler(logits.shape[-1]).sample(logits, requests).tokens
    for row, req, token in zip(logits, requests, found):
        assert token in {reference_token(row, req, slack) for slack in (0.0, 1e-6, -1e-6)}, req.params


@st.composite
def params(draw_from: st.DrawFn) -> dict[str, Any]:
    return {
        "temperature": draw_from(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        "top_k": draw_from(st.sampled_from([0, 0, 1, 5, 40])),
        "top_p": draw_from(st.sampled_from([1.0, 0.1, 0.55, 0.95, 0.999])),
        "min_p": draw_from(st.sampled_from([0.0, 0.0, 0.03, 0.4])),
        "presence_penalty": draw_from(st.sampled_from([0.0, 1.5, -0.7])),
        "frequency_penalty": draw_from(st.sampled_from([0.0, 0.8, -0.2])),
        "repetition_penalty": draw_from(st.sampled_from([1.0, 1.3, 0.8])),
        "seed": draw_from(st.integers(0, 2**63 - 1)),
        "min_tokens": draw_from(st.sampled_from([0, 4])),
        "stop_token_ids": draw_from(st.frozensets(st.integers(0, 60), max_size=3)),
        "logit_bias": tuple(draw_from(st.dictionaries(st.integers(0, 60), st.floats(-20, 20), max_size=4)).items()),
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=SEEDS, vocab=st.sampled_from([7, 50, 400]), step=st.sampled_from([0.0, 0.5]))
def test_any_batch_equals_reference(data: st.DataObject, seed: int, vocab: int, step: float) -> None:
    token = st.integers(0, vocab - 1)
    requests = [
        request(
            f"r{i}",
            prompt=data.draw(st.lists(token, min_size=1, max_size=8)),
            output=data.draw(st.lists(token, max_size=8)),
            **data.draw(params()),
        )
        for i in range(data.draw(st.integers(1, 4)))
    ]
    check_against_reference(random_logits(len(requests), vocab, seed, step=step), requests)


@pytest.mark.parametrize("scale", [0.0, 0.05, 1.0, 4.0])
@pytest.mark.parametrize(
    "filter_",
    [
        {},
        {"top_k": 300},
        {"top_k": 4500},
        {"top_p": 0.9},
        {"min_p": 0.5},
        {"min_p": 1e-9},
        {"top_k": 4200, "top_p": 0.97},
        {"top_k": 300, "top_p": 0.1, "min_p": 0.02},
        {"top_p": 0.999, "min_p": 0.01},
    ],
)
def test_filters_equal_reference_at_every_width(scale: float, filter_: dict[str, Any]) -> None:
    """Flat rows need more candidates than the first width has, and at last the whole vocabulary, sorted."""
    logits = random_logits(3, 5000, seed=3, scale=scale)
    check_against_reference(logits, [request(f"r{i}", seed=i, **filter_) for i in range(3)])


@settings(max_examples=80, deadline=None)
@given(
    seed=SEEDS,
    width=st.sampled_from([8, 32, 100]),
    scale=st.sampled_from([0.0, 0.3, 2.0, 6.0]),
    step=st.sampled_from([0.0, 0.25]),
    top_k=st.sampled_from([0, 1, 7, 8, 31, 60, 100]),
    top_p=st.sampled_from([1.0, 0.05, 0.5, 0.93]),
    min_p=st.sampled_from([0.0, 0.01, 0.6, 1.0]),
)
def test_kept_sets_are_exact_or_refused(
    seed: int, width: int, scale: float, step: float, top_k: int, top_p: float, min_p: float
) -> None:
    vocab = 100
    logits = random_logits(1, vocab, seed, scale, step)
    p = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    values, ids, certain = filters.leading(logits, width)
    shifted = values - values[:, :1]
    total = filters.mass(logits - logits.max()).sum(-1)
    settings_ = (torch.tensor([min(top_k or vocab, vocab)]), torch.tensor([top_p]), torch.tensor([min_p]))
    kept = int(filters.kept(shifted, total, vocab, *settings_))
    expected = [allowed(logits[0].double().tolist(), p, slack) for slack in (0.0, 1e-6, -1e-6)]
    if width == vocab or kept <= int(certain):
        assert ids[0, :kept].tolist() in expected
    else:
        share_of_unseen = top_p < 1 and top_k > width
        assert len(expected[0]) > int(certain) or share_of_unseen, "refused although the candidates held the whole set"


def test_top_k_cuts_a_tie_at_the_lowest_ids() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 900] = 1.0
    seen = {sample_one(logits[0], request(seed=s, temperature=100, top_k=4)) for s in range(200)}
    assert seen == {900, 0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_lowest_of_equal_maxima(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 70_000, dtype=dtype)
    logits[:, [65_000, 4001, 12_345]] = 5.0
    changed = request("b", temperature=0, logit_bias=((3, 1.0),))
    requests = [request("a", temperature=0), changed, request("c", top_k=1, seed=9)]
    assert Sampler(70_000).sample(logits, requests).tokens == [4001] * 3


def test_narrow_logits_sample_as_their_float32_values() -> None:
    logits = random_logits(4, 3000, seed=1).bfloat16()
    settings_: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"frequency_penalty": 1.0, "output": [5]}, {"top_k": 9}]
    requests = [request(str(i), **setting) for i, setting in enumerate(settings_)]
    assert Sampler(3000).sample(logits, requests) == Sampler(3000).sample(logits.float(), requests)


def mixed_requests(count: int, vocab: int) -> list[Request]:
    rng = random.Random(5)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 0.6, "top_p": 0.95},
        {"top_k": 20, "min_p": 0.02},
        {"temperature": 1.3, "top_p": 0.999},
        {"temperature": 0.0, "repetition_penalty": 1.2},
        {"top_p": 0.9, "presence_penalty": 1.0, "frequency_penalty": 0.3, "logprobs": 3},
        {"logit_bias": ((4, 5.0),), "min_tokens": 9, "stop_token_ids": frozenset({4, 6})},
    ]
    return [
        request(
            f"r{i}",
            prompt=[rng.randrange(vocab) for _ in range(10)],
            output=[rng.randrange(vocab) for _ in range(i % 7)],
            seed=i,
            **kinds[i % len(kinds)],
        )
        for i in range(count)
    ]


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    vocab = 6001  # odd, so that rows begin at every alignment
    logits, requests = random_logits(32, vocab, seed=2, scale=2.0), mixed_requests(32, vocab)
    alone = [Sampler(vocab).sample(logits[i : i + 1], [requests[i]]) for i in range(32)]
    order = list(range(32))
    for shuffle in range(3):
        random.Random(shuffle).shuffle(order)
        together = Sampler(vocab).sample(logits[order], [requests[i] for i in order])
        assert together.tokens == [alone[i].tokens[0] for i in order]
        assert together.logprobs == [alone[i].logprobs[0] for i in order]


def test_the_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, requests = random_logits(16, 500, seed=8, scale=1.0), mixed_requests(16, 500)
    whole = Sampler(500).sample(logits, requests)
    monkeypatch.setattr(draw, "_CHUNK_ELEMENTS_CPU", 1)
    assert Sampler(500).sample(logits, requests).tokens == whole.tokens


def test_a_stream_goes_on_the_same_after_preemption_and_on_another_line() -> None:
    vocab = 300
    rows = random_logits(40, vocab, seed=4)
    setting: dict[str, Any] = {"seed": 77, "top_p": 0.95, "frequency_penalty": 0.5, "repetition_penalty": 1.1,
                               "logit_bias": ((7, 3.0), (9, -2.5))}  # fmt: skip

    def go_on(req: Request, sampler: Sampler, until: int) -> Request:
        while len(req.output) < until:
            req.output += sampler.sample(rows[req.known][None], [req]).tokens
        return req

    straight = go_on(request(**setting), Sampler(vocab), 20).output
    first = go_on(request(**setting), Sampler(vocab), 8)
    first.computed, first.preemptions = 0, 1
    assert go_on(first, Sampler(vocab), 12).output == straight[:12]
    carried = request("elsewhere", output=straight[:12], **setting)
    assert go_on(carried, Sampler(vocab), 20).output == straight


def test_seed_and_position_both_matter() -> None:
    row = torch.zeros(2000)
    by_seed = [sample_one(row, request(seed=s)) for s in range(50)]
    by_position = [sample_one(row, request(prompt=[1] * n)) for n in range(1, 51)]
    assert len(set(by_seed)) > 45
    assert len(set(by_position)) > 45
    assert by_seed == [sample_one(row, request(seed=s)) for s in range(50)]


@pytest.mark.parametrize("filter_", [{}, {"top_p": 0.8}, {"top_k": 6, "temperature": 1.7}, {"min_p": 0.1}])
def test_sampled_distribution_fits_softmax(filter_: dict[str, Any]) -> None:
    draws, batch = 10_000, 2000
    row = random_logits(1, 30, seed=6, scale=1.5)[0]
    p = SamplingParams(**filter_)
    ids = allowed(row.double().tolist(), p)
    probability = torch.softmax(row.double()[ids] / p.temperature, -1)
    counts: Counter[int] = Counter()
    for start in range(0, draws, batch):
        requests = [request(seed=start + i, **filter_) for i in range(batch)]
        counts.update(Sampler(30).sample(row.expand(batch, -1), requests).tokens)
    assert set(counts) <= set(ids)
    expected = probability * draws
    statistic = sum((counts[t] - e) ** 2 / e for t, e in zip(ids, expected.tolist()))
    freedom = len(ids) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_penalties_follow_a_growing_output() -> None:
    """What has been seen is kept up step by step; it must equal what a fresh sampler sees."""
    vocab, sampler, rng = 40, Sampler(40), random.Random(1)
    req = request(prompt=[1, 1, 2], output=[2, 3], temperature=0, repetition_penalty=1.4, frequency_penalty=0.9,
                  presence_penalty=0.4)  # fmt: skip
    for step in range(30):
        logits = random_logits(1, vocab, seed=step, scale=1.0)
        token = sampler.sample(logits, [req]).tokens[0]
        assert token == reference_token(logits[0], req)
        req.output += [token] + [rng.randrange(vocab)] * (step % 2)


def test_penalties_of_a_new_request_under_an_old_name() -> None:
    sampler, logits = Sampler(4), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    old = request("same", output=[3], temperature=0, presence_penalty=2.0)
    new = request("same", output=[2], temperature=0, presence_penalty=2.0)
    assert sampler.sample(logits, [old]).tokens == [2]
    assert sampler.sample(logits, [new]).tokens == [3]
    sampler.forget("same")
    sampler.forget("never seen")
    assert sampler.sample(logits, [old]).tokens == [2]


def test_min_tokens_bans_stops_until_reached() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0]])
    setting: dict[str, Any] = {"temperature": 0, "min_tokens": 2, "stop_token_ids": frozenset({2, 10_000})}
    assert [sample_one(logits[0], request(output=[0] * n, **setting)) for n in range(4)] == [1, 1, 2, 2]


def test_nothing_left_possible_falls_back_to_the_model() -> None:
    everything = tuple((t, -math.inf) for t in range(3))
    logits = torch.tensor([[0.0, 7.0, 7.0], [1.0, 0.0, 2.0]])
    requests = [request("a", logit_bias=everything), request("b", temperature=0, min_tokens=1,
                                                             stop_token_ids=frozenset({0, 1, 2}))]  # fmt: skip
    assert Sampler(3).sample(logits, requests).tokens == [1, 2]


def test_infinite_bias_and_tiny_temperature_stay_finite() -> None:
    row = torch.tensor([0.0, 5.0, -1e4])
    assert sample_one(row, request(logit_bias=((2, math.inf),))) == 2
    assert sample_one(row, request(temperature=1e-30)) == 1
    assert sample_one(row, request(temperature=1e-30, top_p=0.5)) == 1


def test_impossible_tokens_and_ids_beyond_the_vocabulary_are_never_drawn() -> None:
    logits = torch.full((1, 600), -math.inf)
    logits[0, [5, 400]] = 0.0
    padded = torch.cat([logits, torch.full((1, 8), 99.0)], dim=-1)
    for filter_ in ({}, {"top_k": 50}, {"top_p": 0.99}, {"logit_bias": ((700, 50.0),), "repetition_penalty": 2.0}):
        requests = [request(str(s), prompt=[1, 5000], seed=s, **filter_) for s in range(40)]
        assert set(Sampler(600).sample(padded.expand(40, -1), requests).tokens) == {5, 400}


def test_bad_logits_are_noticed_and_named() -> None:
    logits = torch.zeros(4, 500)
    logits[1, 499], logits[3, 0] = math.nan, math.inf
    requests = [request("fine"), request("nan", temperature=0), request("well"), request("inf", top_p=0.5)]
    with pytest.raises(ValueError, match="nan, inf") as caught:
        Sampler(500).sample(logits, requests)
    assert isinstance(caught.value, BadLogits)
    assert caught.value.request_ids == ("nan", "inf")


def test_logits_are_left_as_they_are_and_shapes_are_checked() -> None:
    logits, requests = random_logits(16, 500, seed=8), mixed_requests(16, 500)
    before = logits.clone()
    Sampler(500).sample(logits, requests)
    assert torch.equal(logits, before)
    assert Sampler(500).sample(logits[:0], []).tokens == []
    with pytest.raises(ValueError, match="do not fit 2 requests"):
        Sampler(500).sample(logits, requests[:2])
    with pytest.raises(ValueError, match="vocabulary of 501"):
        Sampler(501).sample(logits, requests)
