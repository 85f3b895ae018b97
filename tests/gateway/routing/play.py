"""A clock that tests turn, and a line that answers one request at a time as fast as it is told."""

from __future__ import annotations

from random import Random

from twinline.gateway.routing import Ask, Placement, Policy, Router, Traits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def router_of(clock: Clock, *lines: Traits, seed: int = 0, **policy: object) -> Router:
    """Of lines that are known already, so that nothing is explored, unless asked for."""
    router = Router(Policy(**{"explore": 0.0, **policy}), clock, seed)  # type: ignore[arg-type]
    for traits in lines:
        router.add(traits).prefill.seen = 100
    return router


def ask(prompt: int = 1000, keys: list[int] | None = None, output: int = 200, **more: object) -> Ask:
    return Ask(prompt, keys or [], output, **more)  # type: ignore[arg-type]


def teach(clock: Clock, router: Router, line: str, prefill: float, step: float, count: int = 60, seed: int = 1) -> None:
    """The line answers lone requests: prompts at `prefill` tokens/s, then a token each `step` seconds."""
    random = Random(seed)
    for _ in range(count):
        prompt = random.randrange(200, 3000)
        placed = router.choose(ask(prompt), (line,))
        assert isinstance(placed, Placement)
        clock.now += prompt / prefill
        placed.first_token()
        clock.now += step * 99
        placed.end(100)
