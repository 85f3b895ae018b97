"""When a line is put out of service for its faults, for how long, and how it comes back."""

from __future__ import annotations

import pytest

from twinline.lines.circuit import (
    FIRST_WAIT_SECONDS,
    IN_A_ROW,
    LONGEST_WAIT_SECONDS,
    STEADY_SECONDS,
    WINDOW_LEAST,
    WINDOW_SECONDS,
    Circuit,
    CircuitState,
)


def test_faults_in_a_row_open_it_and_one_good_answer_starts_the_count_again() -> None:
    circuit = Circuit()
    for _ in range(3):
        assert [circuit.fault(0.0, "reset") for _ in range(IN_A_ROW - 1)] == [False] * (IN_A_ROW - 1)
        circuit.well(0.0)
    assert [circuit.fault(1.0, "reset") for _ in range(IN_A_ROW)][-1]
    assert circuit.closed, "it only says so: who may be put out is judged elsewhere"


def test_a_share_of_faults_opens_it_though_none_come_in_a_row() -> None:
    circuit = Circuit()
    verdicts = []
    for number in range(WINDOW_LEAST + 10):
        if number % 2:
            circuit.well(number * 0.1)
        else:
            verdicts.append(circuit.fault(number * 0.1, "reset"))
    assert not any(verdicts[: WINDOW_LEAST // 2 - 1]) and verdicts[-1]


def test_few_faults_among_many_answers_and_old_ones_do_not() -> None:
    circuit = Circuit()
    for number in range(1000):
        if number % 10:
            circuit.well(number * 0.01)
        else:
            assert not circuit.fault(number * 0.01, "reset")
    for _ in range(IN_A_ROW - 1):
        circuit.fault(11.0, "reset")
    later = 11.0 + WINDOW_SECONDS + 1
    circuit.well(later)
    assert not circuit.fault(later, "reset")


def test_while_it_is_open_it_is_probed_once_when_its_wait_is_over() -> None:
    circuit = Circuit()
    circuit.open(10.0, "five resets")
    assert not circuit.closed and circuit.reason == "five resets"
    assert circuit.retry_after(10.5) == pytest.approx(FIRST_WAIT_SECONDS - 0.5)
    assert not circuit.due(10.0 + FIRST_WAIT_SECONDS - 0.01)
    assert not circuit.fault(10.1, "late ones"), "streams that end now do not count again"
    assert circuit.due(10.0 + FIRST_WAIT_SECONDS) and circuit.state is CircuitState.HALF_OPEN
    assert not circuit.due(100.0), "the probe is under way"
    assert not circuit.closed
    circuit.close(13.0)
    assert circuit.closed and circuit.retry_after(13.0) == 0


def test_waits_double_from_trip_to_trip_up_to_a_limit_and_begin_anew_when_it_was_steady() -> None:
    circuit = Circuit()
    now = 0.0
    waits = []
    for _ in range(9):
        circuit.open(now, "again")
        waits.append(circuit.retry_after(now))
        now += waits[-1]
        assert circuit.due(now)
        circuit.close(now)
    assert waits[:4] == [FIRST_WAIT_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert waits[-1] == LONGEST_WAIT_SECONDS
    circuit.well(now + 10)
    assert circuit.trips == 9
    circuit.well(now + STEADY_SECONDS + 1)
    circuit.open(now + STEADY_SECONDS + 2, "again")
    assert circuit.retry_after(now + STEADY_SECONDS + 2) == FIRST_WAIT_SECONDS


def test_a_failed_probe_opens_it_for_longer() -> None:
    circuit = Circuit()
    circuit.open(0.0, "resets")
    assert circuit.due(2.0)
    circuit.open(2.0, "the probe failed")
    assert circuit.retry_after(2.0) == 2 * FIRST_WAIT_SECONDS and circuit.reason == "the probe failed"
