"""Simulated lines, the fleets of them, and what they are asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

OUTPUT = 250  # mean tokens


@dataclass(frozen=True)
class Kind:
    """A kind of line: prefill tokens/s, step a and b in ms, slots, cache in tokens, price per hour."""

    name: str
    count: int
    prefill: float
    a: float
    b: float
    slots: int
    cache: int
    price: float


FLEET_A = (
    Kind("fast", 2, 12000, 12, 0.15, 128, 600_000, 3.0),
    Kind("mid", 3, 3500, 30, 0.5, 64, 250_000, 0.9),
    Kind("slow", 3, 1500, 45, 1.2, 32, 120_000, 0.5),
    Kind("cpu", 2, 150, 90, 8.0, 8, 60_000, 0.15),
)
FLEET_B = (
    Kind("fast", 1, 12000, 12, 0.15, 128, 600_000, 3.0),
    Kind("slow", 8, 2500, 40, 0.8, 48, 200_000, 0.7),
)
FLEETS = {"A": FLEET_A, "B": FLEET_B}
# 157 and 40 tokens/s for a lone stream, prefill in proportion.
FLEET_TWO = (
    Kind("fast", 1, 7850, 1000 / 157 - 0.1, 0.1, 64, 400_000, 3.0),
    Kind("slow", 1, 2000, 1000 / 40 - 0.4, 0.4, 64, 400_000, 0.4),
)
FLEET_PRICED = (
    Kind("fast", 2, 7850, 1000 / 157 - 0.1, 0.1, 64, 400_000, 4.0),
    Kind("cheap", 6, 2000, 1000 / 40 - 0.4, 0.4, 64, 400_000, 0.4),
)
FLEET_EQUAL = (Kind("same", 16, 6000, 20, 0.3, 64, 200_000, 1.0),)


@dataclass(slots=True, eq=False)
class Request:
    at: float
    session: int
    system: int  # which system prompt; -1: none
    system_tokens: int
    prompt: int
    output: int
    keys: Sequence[int]
    sent: float = 0.0
    first: float = 0.0
    work: float = 0.0  # prefill tokens not cached, when it began
    line: str = ""
    handle: object = None


class Line:
    """A simulated line."""

    def __init__(self, kind: Kind, number: int) -> None:
        self.kind, self.name = kind, f"{kind.name}{number}"
        self.prefill, self.a, self.b = kind.prefill, kind.a / 1e3, kind.b / 1e3
        self.queue: list[Request] = []
        self.now_prefilling: Request | None = None
        self.prefill_ends = 0.0
        self.running: list[tuple[float, int, Request]] = []  # by the progress at which they end
        self.progress, self.at = 0.0, 0.0
        self.version = 0
        self.cache: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.cached = 0
        self.busy_seconds = 0.0

    @property
    def idle(self) -> bool:
        return not self.running and self.now_prefilling is None and not self.queue

    def rate(self) -> float:
        """Steps per second."""
        return (0.6 if self.now_prefilling else 1.0) / self.step(len(self.running)) if self.running else 0.0

    def step(self, streams: int) -> float:
        return self.a + self.b * streams

    def advance(self, now: float) -> None:
        if not self.idle:
            self.busy_seconds += now - self.at
        self.progress += (now - self.at) * self.rate()
        self.at = now

    def hit(self, request: Request) -> int:
        longest = max(self.cache.get(("session", request.session), 0), self.cache.get(("system", request.system), 0))
        return max(0, min(longest, request.prompt - 16))

    def store(self, key: tuple[str, int], tokens: int) -> None:
        self.cached += tokens - self.cache.pop(key, 0)
        self.cache[key] = tokens
        while self.cached > self.kind.cache and len(self.cache) > 1:
            self.cached -= self.cache.popitem(last=False)[1]

    def true_ttft(self, request: Request, now: float) -> float:
        """Seconds to the first token if it were sent now and nothing came after."""
        tokens = sum(max(16, r.prompt - self.hit(r)) for r in self.queue)
        tokens += max(16, request.prompt - self.hit(request))
        wait = max(0.0, self.prefill_ends - now) if self.now_prefilling else 0.0
        beyond = len(self.running) + len(self.queue) + (self.now_prefilling is not None) - self.kind.slots + 1
        slot = 0.0
        if beyond > 0 and self.running:
            ends = sorted(end for end, *_ in self.running)
            steps = ends[min(beyond, len(ends)) - 1] - self.progress - (now - self.at) * self.rate()
            slot = steps * self.step(len(self.running))
        return max(wait + tokens / self.prefill, slot) + self.a
