"""The figures of `benchmarks/cpu/scenarios.py` against an engine whose times are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.benchmarks.cpu.scripted import Scripted

from benchmarks.cpu import scenarios


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Eight prompt tokens a step, a quarter of a second each: exact in binary."""
    made = Scripted(chunk=8, step_seconds=0.25)
    monkeypatch.setattr(scenarios, "time", SimpleNamespace(perf_counter=made.clock))
    return made


def test_decode_counts_only_while_all_users_decode(engine: Scripted) -> None:
    found = scenarios.decode(engine, users=4, vocab=100, prompt=8, new=10)
    # first tokens at 0.25, 0.5, 0.75, 1.0; the first user ends at 2.5: six steps of four tokens between
    assert found["first_token"] == 1.0
    assert found["tokens_per_second"] == 4 * 6 / 1.5
    assert found["end_to_end"] == 40 / 3.25
    assert found["gap_p50"] == found["gap_p99"] == found["gap_whole_p99"] == 0.25


def test_decode_of_one_user(engine: Scripted) -> None:
    found = scenarios.decode(engine, users=1, vocab=100, prompt=16, new=5)
    assert found["first_token"] == 0.5
    assert found["tokens_per_second"] == 4.0


def test_decode_that_nobody_can_time_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Scripted(chunk=1024, step_seconds=0.25)
    monkeypatch.setattr(scenarios, "time", SimpleNamespace(perf_counter=engine.clock))
    found = scenarios.decode(engine, users=2, vocab=100, prompt=4, new=1)
    assert found == {"end_to_end": 8.0, "first_token": 0.25}


def test_prefill_is_the_prompt_over_the_time_to_its_token(engine: Scripted) -> None:
    found = scenarios.prefill(engine, tokens=64, vocab=100)
    assert found == {"first_token": 2.0, "tokens_per_second": 32.0}


def test_beside_compares_the_same_prompt_alone_and_late(engine: Scripted) -> None:
    found = scenarios.beside(engine, tokens=32, vocab=100, others=2)
    assert found["alone"] == 1.0
    assert found["beside"] == 1.0  # decodes take no room of this engine's chunk
    assert found["slower"] == 1.0
    assert found["gap_p99"] == 0.25


def test_an_engine_that_gives_up_is_an_error(engine: Scripted) -> None:
    engine.step = list  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="tokens are missing"):
        scenarios.prefill(engine, tokens=8, vocab=100)


def test_prompts_are_unlike_and_the_same_for_a_seed() -> None:
    some = list(scenarios.prompts(3, 50, 1000, seed=7))
    assert some == list(scenarios.prompts(3, 50, 1000, seed=7))
    assert some[0] != some[1]
    assert all(10 <= token < 990 for prompt in some for token in prompt)


def test_percentile_is_a_value_that_occurred() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert scenarios.percentile(values, 0.5) == 51
    assert scenarios.percentile(values, 0.99) == 100
    assert scenarios.percentile([3.0], 0.99) == 3.0
