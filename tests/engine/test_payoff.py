"""Guesses are given up where a token costs more with them, for a while, and for that number of requests alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

from twinline.engine.ngram import Lookup
from twinline.engine.payoff import BETWEEN, FIRST_REST, JUDGED, LONGEST_REST, PLAIN_STEPS, Payoff
from twinline.engine.request import Request, SamplingParams
from twinline.engine.speculation import Speculation


def run(payoff: Payoff, steps: int, *, plain: float, guessed: float, thinking: float, tokens: float,
        requests: int = 1) -> list[bool]:  # fmt: skip
    """Steps of which those with guesses give `tokens` on average; whether each had guesses. Some are slow by chance."""
    rng, made, given = random.Random(3), [], 0.0
    for n in range(steps):
        wanted = payoff.wanted(requests)
        made.append(wanted)
        given += tokens if wanted else 0
        whole = int(given) if wanted else requests
        given -= whole if wanted else 0
        late = 5.0 if n % 11 == 0 else rng.uniform(0.98, 1.02)
        payoff.heard(requests, wanted, whole, (guessed if wanted else plain) * late, thinking if wanted else 0.0)
    return made


def test_guesses_that_pay_go_on_but_for_a_few_steps_to_compare() -> None:
    payoff = Payoff()
    made = run(payoff, 4000, plain=1.0, guessed=1.2, thinking=0.3, tokens=1.9)
    assert not payoff.given_up and payoff.worth(1)
    assert not any(made[:PLAIN_STEPS]) and all(made[PLAIN_STEPS : PLAIN_STEPS + BETWEEN])
    assert 0.97 < sum(made) / len(made) < 0.99


def test_guesses_that_cost_more_than_they_give_are_given_up_and_tried_again_ever_more_rarely() -> None:
    payoff = Payoff()
    made = run(payoff, 5000, plain=1.0, guessed=1.2, thinking=0.3, tokens=1.4)
    rests = [len(rest) for rest in "".join(".#"[m] for m in made).split("#") if len(rest) > PLAIN_STEPS]
    assert sum(made[: PLAIN_STEPS + JUDGED]) == JUDGED and rests[0] == FIRST_REST + PLAIN_STEPS
    assert rests[1] == 2 * FIRST_REST + PLAIN_STEPS and rests[2] == 4 * FIRST_REST + PLAIN_STEPS
    assert payoff.given_up == 5 and sum(made) == 5 * JUDGED
    for _ in range(10):
        run(payoff, LONGEST_REST + 100, plain=1.0, guessed=1.2, thinking=0.3, tokens=1.4)
    assert payoff.given_up > 10, "the longest rest ends too"
    made = run(payoff, LONGEST_REST + 100, plain=1.0, guessed=1.2, thinking=0.3, tokens=2.0)
    assert sum(made[-50:]) >= 50 - PLAIN_STEPS, "what can be guessed again is"


def test_each_number_of_requests_has_its_own_verdict() -> None:
    payoff = Payoff()
    run(payoff, 40, plain=1.0, guessed=3.0, thinking=0.3, tokens=5.0, requests=4)
    run(payoff, 40, plain=1.0, guessed=1.1, thinking=0.1, tokens=1.9)
    assert payoff.worth(1) and payoff.wanted(1) and not payoff.worth(4) and not payoff.wanted(4) and payoff.worth(2)


def test_thinking_is_part_of_the_price() -> None:
    for thinking, given_up in ((0.4, 0), (1.0, 1)):
        payoff = Payoff()
        run(payoff, 60, plain=1.0, guessed=1.3, thinking=thinking, tokens=1.9)
        assert payoff.given_up == given_up


def test_an_engine_measures_its_own_steps() -> None:
    """Steps by the clock, thinking included; failed steps (which `ran` never hears of) are no measure."""

    def ticks() -> Iterator[float]:
        at = 0.0
        while True:  # drafts, ran, think's begin and end
            for after in (1.0, 0.5, 0.0, 0.25):
                yield at
                at += after

    clock, heard = ticks(), []
    guesses = Speculation(8, Lookup(), payoff=Payoff(), clock=lambda: next(clock))
    guesses.payoff.heard = lambda *args: heard.append(args)  # type: ignore[union-attr, method-assign]
    request = Request("r", [5, 9, 31, 8] * 4, SamplingParams(max_tokens=100))
    guesses.drafts([request], 1000)
    guesses.ran(None, None, {"r": [1]}, 1)  # type: ignore[arg-type]
    guesses.think(1000)
    assert heard == [(1, False, 1, 1.0, 0.0)], "a plain step comes first"
    guesses.drafts([request], 1000)
    guesses.think(1000)
    assert len(heard) == 1
