"""Sampling with the host's kernels is sampling without them, token for token, on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from twinline.engine import draw, noise
from twinline.engine.ops.cpu import library, sampling
from twinline.engine.request import Request, SamplingParams
from twinline.engine.sampler import BadLogits, Sampler

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))

SIZES = (1, 15, 16, 17, 255, 257, 512, 513, 1000, 4099)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"temperature": 0.01},
    {"temperature": 50.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.5, "top_p": 0.999},
    {"top_p": 0.3, "min_p": 0.01},
    {"top_k": 1},
    {"top_k": 20, "top_p": 0.9},
    {"top_k": 300, "min_p": 1e-6},
    {"min_p": 0.2},
    {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.1},
    {"logit_bias": tuple((t, -math.inf) for t in range(0, 1000, 2))},
)


@pytest.fixture(params=library.variants() if library.why_not() is None else ["none"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    loaded = library.library()
    assert loaded.handle.twinline_use(request.param.encode())
    yield request.param
    assert loaded.handle.twinline_use(loaded.variant.encode())


def rows(count: int, vocab: int, seed: int, scale: float, step: float, dtype: torch.dtype) -> Tensor:
    """Normal logits; a `step` rounds them, which makes ties. Padded columns beyond the vocabulary, and so a stride."""
    logits = torch.randn(count, vocab + 3, generator=torch.Generator().manual_seed(seed)) * scale
    return ((logits / step).round() * step if step else logits).to(dtype)


def requests(count: int, seed: int) -> list[Request]:
    return [
        Request(
            f"r{seed}.{i}", [1, 2, 3] * (i + 1), SamplingParams(max_tokens=100, seed=seed + i, **setting), output=[5]
        )
        for i, setting in zip(range(count), SETTINGS * count, strict=False)
    ]


def sampled(logits: Tensor, vocab: int, asked: Sequence[Request]) -> list[int]:
    return Sampler(vocab).sample(logits, asked).tokens


def without_kernels(monkeypatch: pytest.MonkeyPatch, logits: Tensor, vocab: int, asked: Sequence[Request]) -> list[int]:
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "serves", lambda logits: False)
        return sampled(logits, vocab, asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", SIZES)
def test_tokens_are_those_without_the_kernels(
    variant: str, vocab: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (scale, step) in enumerate([(3.0, 0.0), (0.0, 0.0), (8.0, 0.5), (0.3, 0.0)]):
        logits, asked = rows(len(SETTINGS), vocab, seed, scale, step, dtype), requests(len(SETTINGS), seed * 100)
        assert sampled(logits, vocab, asked) == without_kernels(monkeypatch, logits, vocab, asked)


def test_a_large_vocabulary_at_any_count_of_threads(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, before = 30_011, torch.get_num_threads()
    logits, asked = rows(26, vocab, 5, 2.5, 0.0, torch.bfloat16), requests(26, 900)
    want = without_kernels(monkeypatch, logits, vocab, asked)
    try:
        for threads in (1, 2, 4):
            library.set_threads(threads)
            assert sampled(logits, vocab, asked) == want
    finally:
        library.set_threads(before)


def test_maxima_are_the_first_and_nan_is_carried(variant: str) -> None:
    for size in SIZES:
        for scale, step in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0)):
            logits = rows(4, size, size, scale, step, torch.float32)[:, :size]
            logits[1, : size // 2] = -math.inf
            best, at = sampling.row_maxima(logits)
            assert torch.equal(best, logits.max(-1).values)
            assert at.tolist() == [row.tolist().index(max(row.tolist())) for row in logits]
    logits = torch.full((3, 100), -math.inf)
    assert [t.tolist() for t in sampling.row_maxima(logits)] == [[-math.inf] * 3, [0] * 3]
    logits[0, 99], logits[1, 7], logits[2, 3] = math.nan, -math.nan, math.inf
    with pytest.raises(BadLogits) as caught:
        Sampler(100).sample(logits, requests(3, 0))
    assert caught.value.request_ids == ("r0.0", "r0.1", "r0.2")


def test_the_winner_of_the_race_is_always_a_candidate(variant: str) -> None:
    """Against the race run over all tokens; candidates come in order and are few."""
    vocab, count = 20_000, 60
    for seed, scale in enumerate((0.0, 1.0, 4.0)):
        logits = rows(count, vocab, seed, scale, 0.0, torch.float32)[:, :vocab]
        best = logits.max(-1).values
        asked = [Request(f"r{i}", [1], SamplingParams(seed=seed * 1000 + i)) for i in range(count)]
        selected = draw._Rows.of(range(count), asked, vocab, logits.device)
        want = draw._draw_from_all(logits, best, selected)
        ids, counts = sampling.race_candidates(logits, best, selected.whole_N4, selected.real_N3)
        for row, token in enumerate(want):
            found = ids[row, : counts[row]].tolist()
            assert token in found and found == sorted(found) and len(found) < 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_guess_is_what_is_drawn_without_filters(
    variant: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel and without it, each row at its own temperature; the likeliest at 0."""
    heats = [0.0, 0.3, 1.0, draw.COLDEST, 5.0, 0.0]
    for vocab in (1, 17, 1000, 20_011):
        logits = rows(len(heats), vocab, vocab, 2.0, 0.0, dtype)[:, :vocab]
        asked = [Request(f"r{i}", [1], SamplingParams(temperature=t, seed=i)) for i, t in enumerate(heats)]
        keys = torch.tensor([noise.key(r.params.seed, r.known) for r in asked])
        for kernels in (True, False):
            with monkeypatch.context() as patched:
                if not kernels:
                    patched.setattr(sampling, "serves", lambda logits: False)
                best, token = draw.winners(logits, keys, torch.tensor(heats))
                assert torch.equal(best, logits.float().max(-1).values)
                assert token.tolist() == sampled(logits, vocab, asked)
    broken = torch.zeros(2, 40)
    broken[0, 7] = math.nan
    best, _ = draw.winners(broken, keys[:2], torch.tensor([1.0, 1.0]))
    assert math.isnan(best[0]) and best[1] == 0


def test_the_likeliest_are_in_order_with_the_lowest_of_equals_first(variant: str) -> None:
    for vocab, wanted, step in ((300, 20, 0.0), (1000, 256, 0.5), (5000, 256, 0.01), (5000, 4096, 0.0)):
        logits = rows(6, vocab, vocab, 2.0, step, torch.float32)[:, :vocab]
        asked = [Request(f"r{i}", [1], SamplingParams(temperature=0.5 + i, top_p=0.9)) for i in range(6)]
        best = logits.max(-1).values
        selected = draw._Rows.of(range(6), asked, vocab, logits.device)
        found = sampling.leading_candidates(logits, best, selected.whole_N4, selected.real_N3, wanted, True)
        order = [sorted(range(vocab), key=lambda t, row=row: (-row[t], t))[:wanted] for row in logits.tolist()]
        for row in range(6):
            if found.complete_N[row]:
                assert found.ids_NK[row].tolist() == order[row]
                assert torch.equal(found.values_NK[row], logits[row, order[row]])
        if step < 0.5:
            assert found.complete_N.all()
        assert found.mass_N is not None
        exact = ((logits.double() - best.double()[:, None]) / selected.real_N3[:, :1].double()).exp().sum(-1)
        assert ((found.mass_N - exact).abs() / exact).max() < sampling.MASS_ERROR / 4


def test_too_many_candidates_and_masses_that_decide_nothing_cost_time_only(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = 5000
    logits, asked = rows(26, vocab, 3, 0.7, 0.25, torch.float32), requests(26, 300)
    want = without_kernels(monkeypatch, logits, vocab, asked)
    monkeypatch.setattr(sampling, "RACE_ROOM", 2)
    monkeypatch.setattr(sampling, "MASS_ERROR", 0.4)
    monkeypatch.setattr(draw, "WIDTHS", (8, 100))
    assert sampled(logits, vocab, asked) == want
