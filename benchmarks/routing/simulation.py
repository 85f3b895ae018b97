"""One run of one fleet under one chooser, by a virtual clock."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    now = 0.0
    lines = [Line(kind, number) for kind in kinds for number in range(kind.count)]
    policy = chooser(lines, lambda: now, seed)
    outcome = Outcome()
    warm = requests[-1].at * 0.2
    events: list[tuple[float, int, int, object]] = [(r.at, 0, i, r) for i, r in enumerate(requests)]
    heapq.heapify(events)
    order = len(events)
    held_back: list[Request] = []

    def push(at: float, what: int, data: object) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at, what, order, data))

    def next_end(line: Line) -> None:
        line.version += 1
        if line.running:
            push(now + max(0.0, line.running[0][0] - line.progress) / line.rate(), 2, (line, line.version))

    def next_prefill(line: Line) -> None:
        if line.now_prefilling is None and line.queue and len(line.running) < line.kind.slots:
            line.advance(now)
            request = line.now_prefilling = line.queue.pop(0)
            hit = line.hit(request)
            request.work = request.prompt - hit
            if request.at > warm:
                outcome.hits += hit
                outcome.prompts += request.prompt
            line.prefill_ends = now + max(16, request.work) / line.prefill
            push(line.prefill_ends, 1, line)
            next_end(line)

    def give(request: Request) -> bool:
        line = policy.choose(request)
        if line is None:
            return False
        line.advance(now)
        request.sent, request.line = now, line.name
        outcome.choices.append((now, line.name))
        line.queue.append(request)
        next_prefill(line)
        if any(x.idle for x in lines):
            outcome.starved += any(sum(r.prompt - x.hit(r) for r in x.queue) / x.prefill > 10 * TTFT_GOAL
                                   for x in lines if len(x.queue) > 1)  # fmt: skip
        return True

    def retry() -> None:
        while held_back and give(held_back[0]):
            held_back.pop(0)

    while events:
        now, what, _, data = heapq.heappop(events)
        if slowed and now >= slowed[0]:
            victim = next(line for line in lines if line.name == slowed[1])
            victim.advance(now)
            victim.prefill /= slowed[2]
            victim.a *= slowed[2]
            victim.b *= slowed[2]
            next_end(victim)
            slowed = None
        if what == 0:
            if held_back or not give(data):
                held_back.append(data)
        elif what == 1:
            line = data
            line.advance(now)
            request, line.now_prefilling = line.now_prefilling, None
            line.store(("system", request.system), request.system_tokens)
            line.store(("session", request.session), request.prompt + request.output)
            request.first = now + line.a
            push(request.first, 3, request)
            heapq.heappush(line.running, (line.progress + request.output, order, request))
            next_end(line)
            next_prefill(line)
        elif what == 2:
            line, version = data
            if version != line.version:
                continue
            line.advance(now)
            request = heapq.heappop(line.running)[2]
            policy.end(request, max(0, request.prompt - int(request.work)))
            outcome.answers.append((now, line.name))
            outcome.ends[id(request)] = now
            if request.at > warm:
                outcome.requests.append(request)
            next_end(line)
            next_prefill(line)
            retry()
        else:
            policy.first(data)
            retry()
    outcome.money = sum(line.busy_seconds * line.kind.price / 3600 for line in lines)
    return outcome
