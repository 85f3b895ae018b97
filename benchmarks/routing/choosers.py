"""The router under test, and what it is compared with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.routing.lines import OUTPUT, Line, Request
from benchmarks.routing.traffic import keys_of

from twinline.gateway.routing import Ask, Policy, Router, Traits, Wait


class Chooser:
    """How a policy is asked: give the line, be told of first and last token."""

    def __init__(self, lines: Sequence[Line], clock: Callable[[], float], seed: int) -> None:
        self.lines, self.clock = lines, clock
        self.by_name = {line.name: line for line in lines}
        self.random = random.Random(seed)

    def choose(self, request: Request) -> Line | None:
        raise NotImplementedError

    def first(self, request: Request) -> None: ...

    def end(self, request: Request, cached: int) -> None: ...


class RoundRobin(Chooser):
    """Smooth weighted round robin with the true speeds as weights (equal ones where not `by_speed`)."""

    by_speed = True

    def __init__(self, lines: Sequence[Line], clock: Callable[[], float], seed: int) -> None:
        super().__init__(lines, clock, seed)
        self.credit = {line.name: 0.0 for line in lines}
        self.weights = {line.name: 1 / line.step(1) if self.by_speed else 1.0 for line in lines}

    def choose(self, request: Request) -> Line:
        for name, weight in self.weights.items():
            self.credit[name] += weight
        name = max(self.credit, key=self.credit.__getitem__)
        self.credit[name] -= sum(self.weights.values())
        return self.by_name[name]


class PlainRoundRobin(RoundRobin):
    by_speed = False


class AtRandom(Chooser):
    def choose(self, request: Request) -> Line:
        return self.random.choice(self.lines)


class FirstTokenOracle(Chooser):
    """The least true time to the first token; then the least step."""

    def choose(self, request: Request) -> Line:
        now = self.clock()
        return min(self.lines, key=lambda x: (round(x.true_ttft(request, now), 3), x.step(len(x.running) + 1)))


class WholeOracle(Chooser):
    """The least true time to the last token, with what the others on the line lose."""

    def choose(self, request: Request) -> Line:
        now = self.clock()
        return min(self.lines, key=lambda x: x.true_ttft(request, now) + OUTPUT * (
            x.step(len(x.running) + 1) + x.b * len(x.running)))  # fmt: skip


class Ours(Chooser):
    """The router under test."""

    policy = Policy()
    affinity = True
    may_wait = False

    def __init__(self, lines: Sequence[Line], clock: Callable[[], float], seed: int) -> None:
        super().__init__(lines, clock, seed)
        self.router = Router(self.policy, clock, seed)
        for line in lines:
            kind = line.kind
            wrong = [math.exp(self.random.uniform(-0.7, 0.7)) for _ in range(2)]
            self.router.add(Traits(line.name, price_per_hour=kind.price, slots=kind.slots,
                                   prefill_tokens_per_second=kind.prefill * wrong[0],
                                   step_seconds=line.step(1) * wrong[1]))  # fmt: skip
        self.names = tuple(self.by_name)

    def after(self, request: Request) -> Sequence[int]:
        """Keys of prompt and output: the gateway has the tokens of both."""
        if not self.affinity or request.session < 0:
            return ()
        return keys_of(request.session, request.system, request.system_tokens, request.prompt + request.output)

    def choose(self, request: Request) -> Line | None:
        ask = Ask(request.prompt, request.keys if self.affinity else (), OUTPUT, context=request.prompt + 1000)
        placed = self.router.choose(ask, self.names, self.may_wait)
        if placed is None or isinstance(placed, Wait):
            return None
        request.handle = placed
        return self.by_name[placed.line]

    def first(self, request: Request) -> None:
        request.handle.first_token()

    def end(self, request: Request, cached: int) -> None:
        request.handle.end(request.output, cached, keys=self.after(request))


def ours(**changes: object) -> type[Ours]:
    """The router with another policy or setting."""
    settings = {name: changes.pop(name) for name in ("affinity", "may_wait") if name in changes}
    return type("Ours", (Ours,), {"policy": replace(Policy(), **changes), **settings})
