"""The router on simulated fleets by a virtual clock: `benchmarks/routing`, shortened, one seed."""

from __future__ import annotations

import pytest
from benchmarks.routing import choosers, lines, questions, simulation, traffic

SEEDS = (11,)


def held(answers: list[questions.Answer]) -> None:
    assert not [str(answer) for answer in answers if not answer.holds]


def test_two_unlike_lines_against_round_robin_and_an_oracle() -> None:
    held(questions.two_lines((11, 12), 200))


def test_cheapest_saves_a_fifth_and_meets_the_goals_as_often() -> None:
    held(questions.money(SEEDS, 300, load=0.35))


def test_weights_are_followed() -> None:
    held(questions.weights(SEEDS))


def test_conversations_come_back_to_their_line() -> None:
    held(questions.affinity(SEEDS, 300))


@pytest.mark.parametrize(("name", "load", "bound"), [("A", 0.5, 98), ("A", 0.8, 94), ("B", 0.5, 98), ("B", 0.8, 94)])
def test_mixed_fleets_meet_their_goals(name: str, load: float, bound: float) -> None:
    held(questions.fleet(name, load, bound, SEEDS, 300))


def test_a_line_that_turns_slow_loses_its_traffic() -> None:
    for name, victim in (("A", "mid0"), ("B", "slow3")):
        assert questions.share_left(lines.FLEETS[name], victim, 11, 400) < 0.35


def test_learnt_speeds_are_the_lines_own() -> None:
    learnt = {}

    class Watched(choosers.Ours):
        def __init__(self, lines, clock, seed) -> None:  # type: ignore[no-untyped-def]
            super().__init__(lines, clock, seed)
            learnt.update({line.name: (line, self.router.station(line.name)) for line in lines})

    simulation.simulate(lines.FLEET_B, traffic.mixed(lines.FLEET_B, 0.5, 11, 300), Watched, 11)
    for line, station in learnt.values():
        assert station.prefill.seen > 20
        assert 1 / station.seconds_per_token == pytest.approx(line.prefill, rel=0.2)
        assert line.a < station.tpot < 1.5 * line.step(1)
