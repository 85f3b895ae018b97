"""A continuation asks a stock engine for exactly what is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lines.drivers.replay import ask

from twinline.lines.drivers.resume import SEED_BITS, approximated, continued_seed, resumed

TOKENS = st.lists(st.integers(0, 40), max_size=30)


def test_a_request_without_a_prefix_is_left_alone() -> None:
    request = ask(frequency_penalty=1.0, seed=5)
    assert resumed(request) is request


@given(prompt=st.lists(st.integers(0, 40), min_size=1), prefix=TOKENS, rest=TOKENS, frequency=st.floats(-2, 2))
def test_frequency_is_penalised_as_if_nothing_had_happened(
    prompt: list[int], prefix: list[int], rest: list[int], frequency: float
) -> None:
    """bias + what the engine counts over its own output = what one engine would have counted over the whole output."""
    asked = resumed(ask(prompt=prompt, output_prefix_ids=prefix, max_tokens=100, frequency_penalty=frequency))
    for token in range(41):
        moved = asked.logit_bias.get(str(token), 0.0) - frequency * rest.count(token)
        assert moved == pytest.approx(-frequency * (prefix + rest).count(token), abs=1e-9)


@given(prefix=TOKENS, most=st.integers(1, 60), least=st.integers(0, 60))
def test_limits_count_the_whole_output(prefix: list[int], most: int, least: int) -> None:
    request = ask(output_prefix_ids=prefix, max_tokens=most, min_tokens=least)
    if most <= len(prefix):
        if prefix:
            with pytest.raises(ValueError, match="nothing is left"):
                resumed(request)
        return
    asked = resumed(request)
    assert asked.max_tokens + len(prefix) == most
    assert asked.min_tokens == max(0, least - len(prefix))
    assert asked.prompt == request.prompt + prefix
    assert not asked.output_prefix_ids


def test_a_clients_own_bias_stays() -> None:
    asked = resumed(ask(output_prefix_ids=[3, 3], max_tokens=9, frequency_penalty=0.5, logit_bias={"3": 2.0, "4": 1.0}))
    assert asked.logit_bias == {"3": 1.0, "4": 1.0}


def test_the_seed_is_another_for_every_place_and_the_same_on_every_line() -> None:
    seeds = {continued_seed(7, k) for k in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**SEED_BITS for seed in seeds)
    assert continued_seed(7, 3) == continued_seed(7, 3) != continued_seed(8, 3)
    assert resumed(ask(output_prefix_ids=[1], seed=7), same_noise=True).seed == 7


def test_prompt_logprobs_are_not_asked_for_twice() -> None:
    assert resumed(ask(output_prefix_ids=[1], prompt_logprobs=2)).prompt_logprobs is None


def test_what_is_only_near_is_said() -> None:
    assert approximated(ask(frequency_penalty=1.0, repetition_penalty=1.0)) is None
    assert approximated(ask(presence_penalty=0.1)) is not None
