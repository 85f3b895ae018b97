"""One run of one fleet under one chooser, by a virtual clock."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.routing.choosers import Chooser
from benchmarks.routing.lines import Kind, Line, Request

TTFT_GOAL, STEP_GOAL = 2.0, 0.1


@dataclass
class Outcome:
    requests: list[Request] = field(default_factory=list)  # ended, sent after the warm-up
    money: float = 0.0
    hits: int = 0
    prompts: int = 0
    starved: int = 0  # choices after which a line had 10 x the goal in its queue while another was idle
    choices: list[tuple[float, str]] = field(default_factory=list)
    answers: list[tuple[float, str]] = field(default_factory=list)
    ends: dict[int, float] = field(default_factory=dict)

    def ttft(self, share: float) -> float:
        return quantile([r.first - r.at for r in self.requests], share)

    @property
    def attained(self) -> float:
        """Share of requests that met both goals."""
        met = sum(r.first - r.at <= TTFT_GOAL and (self.ends[id(r)] - r.first) / r.output <= STEP_GOAL
                  for r in self.requests)  # fmt: skip
        return met / len(self.requests)

    @property
    def hit_rate(self) -> float:
        return self.hits / self.prompts

    @property
    def shares(self) -> dict[str, float]:
        kinds = Counter(r.line.rstrip("0123456789") for r in self.requests)
        return {kind: round(count / len(self.requests), 2) for kind, count in kinds.items()}


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def simulate(
    kinds: Sequence[Kind], requests: Sequence[Request], chooser: type[Chooser], seed: int,
    slowed: tuple[float, str, float] | None = None,
) -> Outcome:  # fmt: skip
    """One run to the last answer. slowed: (seconds, line, factor): from then on that line is slower by it."""
    return _Run(kinds, requests, chooser, seed).to_its_end(slowed)


class _Run:
    """The lines, the clock and what is to come: `(when, what happens, order, to what)`."""

    def __init__(self, kinds: Sequence[Kind], requests: Sequence[Request], chooser: type[Chooser], seed: int) -> None:
        self.now = 0.0
        self.lines = [Line(kind, number) for kind in kinds for number in range(kind.count)]
        self.policy = chooser(self.lines, lambda: self.now, seed)
        self.outcome = Outcome()
        self.warm = requests[-1].at * 0.2
        self.events: list[tuple[float, int, int, Any]] = [(r.at, 0, i, r) for i, r in enumerate(requests)]
        heapq.heapify(self.events)
        self.order = len(self.events)
        self.held_back: list[Request] = []

    def to_its_end(self, slowed: tuple[float, str, float] | None) -> Outcome:
        happens = (self._comes, self._is_prefilled, self._ends, self._has_first_token)
        while self.events:
            self.now, what, _, of = heapq.heappop(self.events)
            if slowed and self.now >= slowed[0]:
                self._slow(*slowed[1:])
                slowed = None
            happens[what](of)
        self.outcome.money = sum(line.busy_seconds * line.kind.price / 3600 for line in self.lines)
        return self.outcome

    # What happens.

    def _comes(self, request: Request) -> None:
        if self.held_back or not self._give(request):
            self.held_back.append(request)

    def _is_prefilled(self, line: Line) -> None:
        line.advance(self.now)
        request, line.now_prefilling = line.now_prefilling, None
        assert request is not None
        line.store(("system", request.system), request.system_tokens)
        line.store(("session", request.session), request.prompt + request.output)
        request.first = self.now + line.a
        self._push(request.first, 3, request)
        heapq.heappush(line.running, (line.progress + request.output, self.order, request))
        self._next_end(line)
        self._next_prefill(line)

    def _ends(self, of: tuple[Line, int]) -> None:
        line, version = of
        if version != line.version:
            return
        line.advance(self.now)
        request = heapq.heappop(line.running)[2]
        self.policy.end(request, max(0, request.prompt - int(request.work)))
        self.outcome.answers.append((self.now, line.name))
        self.outcome.ends[id(request)] = self.now
        if request.at > self.warm:
            self.outcome.requests.append(request)
        self._next_end(line)
        self._next_prefill(line)
        self._retry()

    def _has_first_token(self, request: Request) -> None:
        self.policy.first(request)
        self._retry()

    def _slow(self, name: str, factor: float) -> None:
        line = next(line for line in self.lines if line.name == name)
        line.advance(self.now)
        line.prefill /= factor
        line.a *= factor
        line.b *= factor
        self._next_end(line)

    # What follows from it.

    def _push(self, at: float, what: int, of: object) -> None:
        self.order += 1
        heapq.heappush(self.events, (at, what, self.order, of))

    def _next_end(self, line: Line) -> None:
        line.version += 1
        if line.running:
            at = self.now + max(0.0, line.running[0][0] - line.progress) / line.rate()
            self._push(at, 2, (line, line.version))

    def _next_prefill(self, line: Line) -> None:
        if line.now_prefilling is None and line.queue and len(line.running) < line.kind.slots:
            line.advance(self.now)
            request = line.now_prefilling = line.queue.pop(0)
            hit = line.hit(request)
            request.work = request.prompt - hit
            if request.at > self.warm:
                self.outcome.hits += hit
                self.outcome.prompts += request.prompt
            line.prefill_ends = self.now + max(16, request.work) / line.prefill
            self._push(line.prefill_ends, 1, line)
            self._next_end(line)

    def _give(self, request: Request) -> bool:
        line = self.policy.choose(request)
        if line is None:
            return False
        line.advance(self.now)
        request.sent, request.line = self.now, line.name
        self.outcome.choices.append((self.now, line.name))
        line.queue.append(request)
        self._next_prefill(line)
        if any(x.idle for x in self.lines):
            self.outcome.starved += any(sum(r.prompt - x.hit(r) for r in x.queue) / x.prefill > 10 * TTFT_GOAL
                                        for x in self.lines if len(x.queue) > 1)  # fmt: skip
        return True

    def _retry(self) -> None:
        while self.held_back and self._give(self.held_back[0]):
            self.held_back.pop(0)
