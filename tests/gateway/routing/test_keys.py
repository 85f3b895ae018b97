"""Chained block keys."""

from __future__ import annotations

from array import array
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinline.gateway.routing import block_keys, keys_after
from twinline.gateway.routing.keys import ENDS, covered

TOKENS = [Random(1).randrange(150_000) for _ in range(40_000)]


def test_one_key_per_whole_block() -> None:
    assert block_keys(TOKENS[:63]) == []
    assert len(block_keys(TOKENS[:64])) == 1
    assert len(block_keys(TOKENS[:1000])) == 15
    assert len(block_keys(TOKENS[:32768])) == 224


@given(st.integers(0, 40_000), st.integers(0, 40_000))
def test_equal_keys_as_far_as_the_tokens_are_equal(length: int, change: int) -> None:
    other = TOKENS[:length]
    if change < length:
        other[change] += 1
    ours, theirs = block_keys(TOKENS), block_keys(other)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(theirs))
    assert covered(same) <= min(length, change)
    assert same == len(theirs) or ENDS[same] > change
    assert len(set(ours[same:]) & set(theirs[same:])) == 0


def test_a_block_has_another_key_behind_another_block() -> None:
    block = TOKENS[:64]
    first, second = block_keys(block * 2)
    assert first != second


def test_an_array_gives_the_same_keys() -> None:
    assert block_keys(array("I", TOKENS[:500])) == block_keys(TOKENS[:500]) == block_keys(array("q", TOKENS[:500]))


def test_a_negative_token_is_refused() -> None:
    with pytest.raises(OverflowError):
        block_keys([-1] * 64)


@given(st.integers(0, 40_000), st.integers(0, 2_000), st.integers(0, 40_000))
def test_known_keys_are_gone_on_from(length: int, more: int, back: int) -> None:
    """Whether they are of the prompt, of a part of it, or of some of the output too."""
    known = block_keys(TOKENS[: max(0, length + more - back)])
    prompt, output = TOKENS[:length], TOKENS[length : length + more]
    assert keys_after(known, prompt, output) == block_keys(prompt + output)


def test_known_keys_are_not_made_again() -> None:
    assert keys_after([5, 6], TOKENS[:100], TOKENS[100:191]) == [5, 6]
    first, second, third = keys_after([5, 6], TOKENS[:100], TOKENS[100:192])
    assert (first, second) == (5, 6) and third not in block_keys(TOKENS[:192])
