"""The compiled rule of choice is the Python one, to the last bit."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.routing.play import Clock, router_of

from twinline.gateway.routing import Ask, Policy, Router, Traits
from twinline.gateway.routing import router as module

compiled = pytest.mark.skipif(module.best_compiled is module._declines, reason="the extension was not built")
SPEED = st.floats(1e-6, 100.0)
FIELDS = ("base", "seconds_per_token", "head_seconds", "late_step", "trust", "prefill_work", "decode_work", "step_cost",
          "prefill_delay", "hazard", "tpot")  # fmt: skip


def router(clock: Clock, policy: Policy, lines: int, draw: random.Random) -> Router:
    """Lines in any state that a line could be in, and some that none could."""
    made = router_of(clock, *(Traits(f"l{number}") for number in range(lines)))
    made.follow(policy)
    for station in made.stations():
        for field in FIELDS:
            setattr(station, field, draw.choice([0.0, draw.random(), draw.random() * 100, 10 ** draw.uniform(-6, 3)]))
        station.head_at = clock() - draw.random()
        station.risky = draw.random() < 0.3
    return made


@compiled
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["cheapest", "fastest", "prefer"]), st.booleans(), st.booleans())
def test_both_choose_the_same(seed: int, rule: str, movable: bool, sticky: bool) -> None:
    draw, clock = random.Random(seed), Clock()
    made = router(clock, Policy(rule, sticky=sticky), draw.randint(1, 20), draw)  # type: ignore[arg-type]
    lines = list(made.stations())
    held = [(draw.randint(64, 4000), draw.getrandbits(20)) for _ in range(draw.choice([0, 0, 1, 3]))]
    ask = Ask(draw.randint(1, 8000), (), draw.randint(1, 4000), movable)
    sticks, per_ttft, now = rule == "cheapest" and sticky, 1.0 / made.policy.ttft_seconds, clock()
    found = module.best_compiled(
        lines, held, ask.prompt_tokens, ask.output_tokens, movable, sticks, per_ttft, now, made._rule, made._mean_price
    )
    assert found == made._best_of(ask, lines, held, now, sticks, per_ttft)


@compiled
def test_what_it_cannot_hold_is_pythons_to_choose() -> None:
    made = router(Clock(), Policy("fastest"), 3, random.Random(1))
    lines = list(made.stations())

    def best(held: list[tuple[int, int]]) -> object:
        return module.best_compiled(lines, held, 10, 10, True, False, 1.0, 0.0, module.FASTEST, 1.0)

    assert best([]) is not None
    assert best([(64, 1 << 64)]) is None, "more lines than bits"
    lines[0].base = None  # type: ignore[assignment]
    assert best([]) is None
