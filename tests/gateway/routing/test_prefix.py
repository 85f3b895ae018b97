"""The index of who was sent what."""

from __future__ import annotations

from random import Random

import pytest

from twinline.gateway.routing import PrefixIndex, block_keys
from twinline.gateway.routing.keys import covered

SYSTEM = [Random(1).randrange(150_000) for _ in range(640)]


def prompt(number: int, length: int = 640) -> list[int]:
    random = Random(100 + number)
    return block_keys(SYSTEM + [random.randrange(150_000) for _ in range(length)])


def test_each_line_holds_what_it_was_sent() -> None:
    index = PrefixIndex()
    index.put(prompt(1), index.bit("a"))
    index.put(prompt(2), index.bit("b"))
    assert index.tokens(prompt(1), "a") == 1280
    assert index.tokens(prompt(1), "b") == 640
    assert index.tokens(prompt(3), "a") == 640
    assert index.tokens(prompt(1), "c") == 0
    assert index.held(prompt(1)) == [(1280, index.bit("a")), (640, index.bit("a") | index.bit("b"))]


def test_nothing_is_held_of_an_unknown_or_short_prompt() -> None:
    index = PrefixIndex()
    index.put(prompt(1), index.bit("a"))
    assert index.held([]) == []
    assert index.held(block_keys(list(range(1000)))) == []


def test_agrees_with_a_plain_set_per_line() -> None:
    random = Random(7)
    index = PrefixIndex()
    plain: dict[str, set[int]] = {f"l{i}": set() for i in range(5)}
    tree = [prompt(i, 64 * random.randrange(0, 40)) for i in range(20)]
    for _ in range(300):
        line, keys = random.choice(list(plain)), random.choice(tree)
        keys = keys[: random.randrange(len(keys) + 1)]
        index.put(keys, index.bit(line))
        plain[line].update(keys)
        asked = random.choice(tree)
        for name, sent in plain.items():
            deep = next((i for i, key in enumerate(asked) if key not in sent), len(asked))
            assert index.tokens(asked, name) == covered(deep)


def test_a_line_that_restarted_holds_nothing_and_others_keep_theirs() -> None:
    index = PrefixIndex()
    for line in "ab":
        index.put(prompt(1), index.bit(line))
    index.forget("a")
    assert index.tokens(prompt(1), "a") == 0
    assert index.tokens(prompt(1), "b") == 1280
    index.put(prompt(1), index.bit("a"))
    assert index.tokens(prompt(1), "a") == 1280


def test_survives_any_number_of_restarts_with_bounded_sets() -> None:
    index, keys = PrefixIndex(), prompt(1)
    for _ in range(1000):
        index.forget("a")
        index.put(keys, index.bit("a"))
        assert index.tokens(keys, "a") == 1280
    assert index.bit("a") < 1 << 256


def test_bits_differ_after_the_index_began_anew() -> None:
    index = PrefixIndex()
    names = [f"l{i}" for i in range(20)]
    for _ in range(40):
        for name in names:
            index.forget(name)
            index.bit(name)
    assert len({index.bit(name) for name in names}) == 20


def test_bounded_and_keeps_what_is_used() -> None:
    index = PrefixIndex(capacity=2000)
    for number in range(1000):
        index.put(prompt(number), index.bit("a"))
        index.put(prompt(5000), index.bit("a"))
        assert len(index) <= 2000 + 2 * 20
    assert index.tokens(prompt(5000), "a") == 1280
    assert index.tokens(prompt(0), "a") <= 640
    assert index.tokens(prompt(999), "a") == 1280


def test_correction_takes_out_what_was_not_cached() -> None:
    index = PrefixIndex()
    for line in "ab":
        index.put(prompt(1), index.bit(line))
    index.correct(prompt(1), index.bit("a"), 700)
    assert index.tokens(prompt(1), "a") == 640
    assert index.tokens(prompt(1), "b") == 1280
    index.correct(prompt(1), index.bit("a"), 0)
    assert index.tokens(prompt(1), "a") == 0


def test_no_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs at least 2"):
        PrefixIndex(1)
