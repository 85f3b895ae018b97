"""Level 6 compares answers in pairs, and does not call noise a loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.engine.tiny import write_checkpoint
from tests.verify.ladder.climbing import bad, bench, changed, climb, planted, verdicts

from twinline.verify.ladder import pace, tasks
from twinline.verify.problems import examination


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these few, however slow the machine is while others work on it: seven lost answers prove nothing."""
    monkeypatch.setattr(tasks, "COUNT", 12)
    monkeypatch.setattr(pace, "step_seconds", lambda bench: 0.01)


def test_a_clean_chip_answers_as_the_reference() -> None:
    found = climb(bench(seed=5), "tasks")
    assert set(verdicts(found).values()) == {"pass"}
    assert found[0].figures["lost"] == 0


def test_a_chip_that_forgets_loses_answers() -> None:
    """A norm that is off by a third: not one right sum is left, and the first differing tokens are far apart."""
    with planted(bench(), changed("rms_norm", lambda x: x * 1.3 + 0.2)) as one:
        found = {f.check for f in bad(climb(one, "tasks"))}
    assert {"tasks.paired", "tasks.tokens"} <= found


def test_an_engine_that_fails_is_a_finding_with_its_words() -> None:
    with planted(bench(), lambda chip: chip.lacks(["bincount"])) as one:
        found = climb(one, "tasks")
    assert found[0].check == "tasks.paired" and found[0].verdict == "limit" and "bincount" in found[0].text


def test_another_model_is_skipped_with_the_reason(tmp_path: Path) -> None:
    found = climb(bench(model=write_checkpoint(tmp_path)), "tasks")
    assert {f.verdict for f in found} == {"skipped"}
    assert "only tiny-r1" in found[0].text


def _pairs(lost: int, won: int, n: int = 28) -> list[tasks.Pair]:
    problems = examination(n, 1)
    return [
        tasks.Pair(p, [1], [2], [2], not i < lost, not lost <= i < lost + won) for i, p in enumerate(problems)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    [(0, 0, "pass"), (1, 0, "note"), (0, 1, "note"), (2, 2, "note"), (9, 0, "note"), (10, 0, "fail"), (13, 1, "fail")],
)
def test_a_loss_fails_only_beyond_chance(monkeypatch: pytest.MonkeyPatch, lost: int, won: int, verdict: str) -> None:
    monkeypatch.setattr(tasks, "pairs", lambda bench: _pairs(lost, won))
    (found,) = tasks._paired(bench())
    assert found.verdict == verdict


def test_a_chip_that_wins_is_not_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """(b - c)/n + 1.645 sqrt(b + c)/n <= 1 point holds where it only wins by many."""
    monkeypatch.setattr(tasks, "pairs", lambda bench: _pairs(0, 10))
    (found,) = tasks._paired(bench())
    assert found.verdict == "pass" and found.figures["margin"] < 0


def test_statistics() -> None:
    assert tasks.sign_test(10, 0) == pytest.approx(2**-10)
    assert tasks.sign_test(1, 1) == pytest.approx(0.75)
    n = tasks.least_count(0.02)
    assert 1.645 * math.sqrt(0.02 * n) / n <= 0.01 < 1.645 * math.sqrt(0.02 * (n - 20)) / (n - 20)
    assert 1 - (1 - tasks.least_seen(28)) ** 28 == pytest.approx(0.95)


def test_the_first_difference() -> None:
    assert tasks._first_difference([1, 2], [1, 2]) is None
    assert tasks._first_difference([1, 2, 3], [1, 4]) == 1
    assert tasks._first_difference([1, 2], [1, 2, 3]) == 2
