"""The compiled books against their definition in Python: the same to the last bit, whatever passes through them."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

import pytest

from twinline.gateway.routing import Ask, Placement, Policy, Router, Traits, compiled
from twinline.gateway.routing.fit import Fit
from twinline.gateway.routing.station import Station

pytestmark = pytest.mark.skipif(not compiled.COMPILED, reason="the extension was not built")


def seen(thing: Any) -> Any:
    """All that an object holds, numbers by their bits."""
    if isinstance(thing, float):
        return thing.hex()
    if isinstance(thing, int | str | None | bool):
        return type(thing), thing
    if isinstance(thing, list | tuple | deque | frozenset):
        return [seen(each) for each in thing]
    if isinstance(thing, Fit | Station | Placement):
        names = [
            name for name in type(thing).__slots__ if name not in ("clock", "traits", "features", "station", "_index")
        ]
        return {name: seen(getattr(thing, name)) for name in names if hasattr(thing, name)}
    raise AssertionError(type(thing))


def played(methods: dict[Any, Any], seed: int) -> list[Any]:
    """What the books of three lines hold after each step of a random life."""
    compiled.use(methods)
    try:
        random = Random(seed)
        now = 100.0
        router = Router(Policy(random.choice(["fastest", "cheapest"])), lambda: now, seed)
        for number in range(3):
            slots = random.choice([None, 1, 4])
            router.add(Traits(f"line-{number}", slots=slots, price_per_hour=random.random() * number))
        alive: list[Placement] = []
        books = []
        for _ in range(300):
            now += random.choice([0.0, 0.001, random.random(), 5.0])
            step = random.random()
            if step < 0.4 or not alive:
                size = random.choice([1, 8, 100, 5000])
                ask = Ask(size, [random.randrange(20) for _ in range(random.randrange(4))], random.randrange(1, 300))
                placed = router.choose(ask, tuple(f"line-{number}" for number in range(3)))
                assert isinstance(placed, Placement)
                alive.append(placed)
            elif step < 0.7:
                random.choice(alive).first_token()
            elif step < 0.75:
                random.choice(alive).progress(random.randrange(40))
            elif step < 0.8:
                router.station(f"line-{random.randrange(3)}").seen_elsewhere(random.random() * 100, random.randrange(3))
            else:
                one = random.choice(alive)
                one.end(
                    random.randrange(300),
                    random.choice([None, 0, 64, 5000]),
                    ok=random.random() < 0.7,
                    fault=random.random() < 0.2,
                    keys=random.choice([(), [1, 2, 3]]),
                )
                if random.random() < 0.8:
                    alive.remove(one)  # else it ends again
            books.append([seen(station) for station in router.stations()])
        return books
    finally:
        compiled.use(compiled.COMPILED)


@pytest.mark.parametrize("seed", range(40))
def test_the_books_are_the_same_to_the_last_bit(seed: int) -> None:
    assert played(compiled.COMPILED, seed) == played(compiled.DEFINITIONS, seed)


def test_every_method_is_compiled_and_used() -> None:
    assert compiled.COMPILED.keys() == compiled.DEFINITIONS.keys()
    for owner, name in compiled.DEFINITIONS:
        assert vars(owner)[name] is compiled.COMPILED[owner, name] is not compiled.DEFINITIONS[owner, name]


def test_what_is_no_number_is_left_to_python() -> None:
    station = Router(Policy("fastest"), lambda: 1.0).add(Traits("line"))
    station.price = "dear"  # type: ignore[assignment]
    before = seen(station)
    with pytest.raises(TypeError):
        station.derive()
    station.price = 2**60
    station.derive()
    assert seen(station)["decode_work"] != before["decode_work"]
    with pytest.raises(ZeroDivisionError):
        Fit(0.0, 0.0, 1.0).learn(0.0, 0.0)
