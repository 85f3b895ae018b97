"""The token bucket for re-admission."""

from __future__ import annotations

import pytest

from twinline.gateway.routing import Budget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    budget = Budget(rate=1000, burst=5000, clock=clock)
    assert budget.take(3000) and budget.take(2000)
    assert not budget.take(100)
    assert budget.wait(100) == pytest.approx(0.1)
    clock.now += 0.1
    assert budget.take(100)


def test_more_than_the_burst_waits_for_a_full_bucket_and_is_paid_for() -> None:
    clock = Clock()
    budget = Budget(rate=1000, burst=5000, clock=clock)
    assert budget.take(12_000)
    assert budget.wait(1000) == pytest.approx(8.0)
    clock.now += 1000
    assert budget.wait(5000) == 0


def test_over_a_long_time_no_more_than_the_rate_passes() -> None:
    clock = Clock()
    budget = Budget(rate=1000, burst=2000, clock=clock)
    passed = 0
    for i in range(10_000):
        clock.now += 0.01
        size = 10 + i % 3000
        passed += size if budget.take(size) else 0
    assert 90_000 < passed <= 1000 * 100 + 2000 + 3000


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_a_budget_that_lets_nothing_through_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Budget(rate, burst, Clock())
