"""How many requests a line is given after it said that it has no room."""

from __future__ import annotations

import pytest

from twinline.gateway.room import FULL_SECONDS, LONGEST_FULL_SECONDS, Room


def test_a_line_that_never_refused_has_room() -> None:
    room = Room()
    assert not room and not room.lacks("a")
    assert not room.given("a") and not room.ended("a") and not room.look(10.0, True)


def test_one_request_for_each_answer_that_ends() -> None:
    room = Room()
    room.refused("a", 0.0, "3")
    assert room and room.lacks("a") and not room.lacks("b")
    assert room.ended("a") and not room.lacks("a")
    assert not room.ended("a"), "it had room already"
    assert not room.given("a") and room.given("a") and room.lacks("a")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("2", 2.0), (None, FULL_SECONDS), ("soon", FULL_SECONDS), ("3600", LONGEST_FULL_SECONDS), ("0.25", 0.25)],
)
def test_it_is_tried_when_the_time_that_it_gave_is_over(said: str | None, seconds: float) -> None:
    room = Room()
    room.refused("a", 100.0, said)
    assert not room.look(100.0 + seconds - 0.01, True) and room.lacks("a")
    assert room.look(100.0 + seconds, True) and not room.lacks("a")


def test_trials_double_while_it_takes_them_and_begin_anew_when_it_refuses() -> None:
    room, now = Room(), 0.0
    room.refused("a", now, None)
    for trial in (1, 2, 4):
        now += FULL_SECONDS
        assert room.look(now, True)
        for number in range(trial):
            assert room.given("a") is (number == trial - 1)
    room.refused("a", now, None)
    assert room.look(now + FULL_SECONDS, True) and room.given("a")


def test_when_nobody_waits_any_more_all_is_forgotten() -> None:
    room = Room()
    room.refused("a", 0.0, None)
    assert room.look(FULL_SECONDS, False) and not room
    room.refused("b", 0.0, None)
    room.forget("b")
    assert not room
