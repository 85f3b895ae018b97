"""The straight line of seconds over load, from a start that is wrong."""

from __future__ import annotations

from random import Random

import pytest

from twinline.gateway.routing.fit import Fit


@pytest.mark.parametrize("wrong", [0.5, 2.0])
@pytest.mark.parametrize(("fixed", "slope"), [(0.012, 0.00015), (0.045, 0.0012), (0.09, 0.008)])
def test_finds_both_parts_within_200_observations(wrong: float, fixed: float, slope: float) -> None:
    random = Random(3)
    fit = Fit(fixed * wrong, slope / wrong, knee=50)
    for _ in range(200):
        load = random.uniform(1, 30)
        fit.learn(load, (fixed + slope * load) * random.lognormvariate(0, 0.1))
    for load in (1, 15, 30):
        assert fit.at(load) == pytest.approx(fixed + slope * load, rel=0.1)
    assert fit.fixed == pytest.approx(fixed, rel=0.15)


def test_the_first_observation_sets_the_size() -> None:
    fit = Fit(0.03, 0.0006, knee=50)
    fit.learn(1, 3.0)
    assert fit.at(1) == pytest.approx(3.0, rel=0.05)


def test_with_one_load_only_the_assumed_shape_splits_it() -> None:
    fit = Fit(1.0, 1.0, knee=50)
    for _ in range(100):
        fit.learn(10, 0.06)
    assert fit.at(10) == pytest.approx(0.06, rel=0.01)
    assert fit.fixed == pytest.approx(50 * fit.slope, rel=0.05)


def test_follows_a_line_that_turns_four_times_slower_within_20_observations() -> None:
    random = Random(5)
    fit = Fit(0.03, 0.0006, knee=50)
    for i in range(220):
        load = random.uniform(1, 20)
        fit.learn(load, (0.03 + 0.0006 * load) * (4 if i >= 200 else 1))
    assert fit.at(10) > 3 * 0.036


def test_one_outlier_moves_it_little() -> None:
    fit = Fit(0.03, 0.0006, knee=50)
    for load in range(1, 60):
        fit.learn(load, 0.03 + 0.0006 * load)
    fit.learn(10, 100.0)
    assert fit.at(10) < 2 * 0.036


def test_observations_of_zero_are_taken_into_the_mean() -> None:
    """A line that prefills in pairs: the second of each pair shows as free."""
    fit = Fit(0.001, 0.001, knee=100)
    for i in range(300):
        fit.learn(1000, 0.0 if i % 2 else 0.4)
    assert fit.at(1000) == pytest.approx(0.2, rel=0.1)
    assert fit.fixed > 0 and fit.slope > 0


def test_nothing_but_zeros_leaves_it_above_zero() -> None:
    fit = Fit(0.001, 0.001, knee=100)
    for _ in range(50):
        fit.learn(100, 0.0)
    assert fit.at(100) > 0
