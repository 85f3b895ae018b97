"""The keyed noise: its value is fixed for good, the same however it is computed, and it is good noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinline.engine import noise

MASK32 = 2**32 - 1


def slow_word(seed: int, position: int, token: int) -> int:
    """The definition, in Python integers that cannot overflow."""
    first, second = noise.key(seed, position)
    x = token ^ first
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK32
    x = (((x ^ (x >> 15)) ^ second) * 0x21F0AAAD) & MASK32
    return x ^ (x >> 16)


def keys(pairs: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor([noise.key(seed, position) for seed, position in pairs], dtype=torch.int64)


def chi_square_z(u: torch.Tensor, bins: int = 100) -> float:
    """Standard deviations by which the chi-square statistic of `u` against uniform departs from its mean."""
    counts = torch.histc(u.flatten(), bins, 0, 1).double()
    expected = u.numel() / bins
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


def correlation_z(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().flatten() - 0.5, b.double().flatten() - 0.5
    return ((a * b).mean() * 12 * math.sqrt(a.numel())).item()


@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**31), token=st.integers(0, 2**20))
def test_words_equal_their_definition(seed: int, position: int, token: int) -> None:
    assert noise.words(keys([(seed, position)]), torch.tensor([token])).item() == slow_word(seed, position, token)


def test_words_are_fixed_for_good() -> None:
    """Lines of different releases continue one another's streams: these numbers must never change."""
    found = [slow_word(*place) for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63 - 1, 131071, 151999))]
    assert found == [1681882328, 1422842450, 3620818044, 1747947594, 1727409682]


def test_same_noise_over_candidates_and_over_all() -> None:
    key = keys([(7, 11), (7, 12)])
    everything = noise.gumbel(key, torch.arange(1000))
    some = torch.tensor([[999, 3, 500], [0, 1, 998]])
    assert torch.equal(noise.gumbel(key, some), everything.gather(1, some))


def test_uniform_stays_inside_and_gumbel_finite() -> None:
    u = noise.to_uniform(torch.tensor([[0, 1, MASK32 - 1, MASK32]]))
    assert u.dtype == torch.float32
    assert (u > 0).all() and (u < 1).all()
    assert torch.isfinite(noise.gumbel(keys([(s, s) for s in range(20)]), torch.arange(50_000))).all()


@pytest.mark.parametrize("token", [0, 1, 2, 5000, 151_999])
def test_uniform_over_positions_and_over_seeds(token: int) -> None:
    tokens = torch.tensor([token])
    positions = noise.uniform(keys([(3, p) for p in range(20_000)]), tokens)
    seeds = noise.uniform(keys([(s, 3) for s in range(20_000)]), tokens)
    for u in (positions, seeds):
        assert abs(chi_square_z(u)) < 4
        for lag in (1, 2, 16):
            assert abs(correlation_z(u[:-lag], u[lag:])) < 4


def test_uniform_over_tokens_and_neighbours_uncorrelated() -> None:
    places = [(s, p) for s in range(4) for p in range(5)]
    u = noise.uniform(keys(places), torch.arange(50_000))
    assert abs(chi_square_z(u)) < 4
    assert all(abs(chi_square_z(row)) < 5 for row in u)
    for lag in (1, 2, 4, 16, 128, 1024):
        assert abs(correlation_z(u[:, :-lag], u[:, lag:])) < 4
    by_place = u.view(4, 5, -1)
    assert abs(correlation_z(by_place[:-1], by_place[1:])) < 4
    assert abs(correlation_z(by_place[:, :-1], by_place[:, 1:])) < 4


def test_neighbouring_tokens_are_jointly_uniform() -> None:
    u = noise.uniform(keys([(9, p) for p in range(10)]), torch.arange(50_000))
    joint = ((u[:, :-1] * 20).long() * 20 + (u[:, 1:] * 20).long() + 0.5) / 400
    assert abs(chi_square_z(joint.float(), bins=400)) < 4


def test_argmax_of_flat_noise_is_uniform() -> None:
    for stride in (1, 128):
        winners = noise.gumbel(keys([(1, p) for p in range(20_000)]), torch.arange(200) * stride).argmax(-1)
        assert abs(chi_square_z((winners + 0.5) / 200, bins=200)) < 4


def test_gumbel_has_its_moments() -> None:
    g = noise.gumbel(keys([(5, p) for p in range(10)]), torch.arange(100_000)).double()
    assert g.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert g.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
