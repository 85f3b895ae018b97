"""What is measured, on any engine: decoding by so many users, prefill, a first token beside others.

Owns workloads and the definition of every figure. Standard library only. Times are seconds.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.cpu.engines import Engine

PROMPT, NEW = 128, 128
OTHERS = 8


@dataclass
class Came:
    """When each token of each request came."""

    began: float
    times: dict[str, list[float]] = field(default_factory=dict)

    def first(self, key: str) -> float:
        return self.times[key][0]


def prompts(count: int, length: int, vocab: int, seed: int) -> Iterator[list[int]]:
    """Unlike prompts of random ids, none of them special."""
    rng = random.Random(seed)
    for _ in range(count):
        yield [rng.randrange(10, vocab - 10) for _ in range(length)]


def drive(engine: Engine, came: Came, until: Callable[[], bool]) -> None:
    """Steps the engine and notes when tokens come, until `until`; raises where the engine ends before."""
    while not until():
        keys = engine.step()
        now = time.perf_counter()
        if not keys:
            raise RuntimeError("the engine has nothing left to do, and tokens are missing")
        for key in keys:
            came.times[key].append(now)


def submit(engine: Engine, came: Came, prompt: list[int], new: int) -> str:
    key = engine.submit(prompt, new)
    came.times[key] = []
    return key


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie, the nearest one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(times)]


def decode(
    engine: Engine, users: int, vocab: int, prompt: int = PROMPT, new: int = NEW, seed: int = 0
) -> dict[str, float]:
    """All users start together. `tokens_per_second`: of all, from when the last has its first token until the first
    ends, so that always `users` decode. `end_to_end`: all new tokens over all time. Gaps between tokens of one request:
    `gap_*` in that window, `gap_whole_p99` over the whole run, others' prefill included."""
    came = Came(time.perf_counter())
    keys = [submit(engine, came, ids, new) for ids in prompts(users, prompt, vocab, seed)]
    drive(engine, came, lambda: all(len(times) >= new for times in came.times.values()))
    total = max(times[-1] for times in came.times.values()) - came.began
    begin = max(came.first(key) for key in keys)
    end = min(times[-1] for times in came.times.values())
    inside = [[t for t in times if begin <= t <= end] for times in came.times.values()]
    made = sum(sum(t > begin for t in times) for times in inside)
    between = [gap for times in inside for gap in gaps(times)]
    everything = [gap for times in came.times.values() for gap in gaps(times)]
    found = {"end_to_end": users * new / total, "first_token": begin - came.began}
    if made:  # else too short for anything to be seen in it
        found |= {
            "tokens_per_second": made / (end - begin),
            "gap_p50": percentile(between, 0.5),
            "gap_p99": percentile(between, 0.99),
            "gap_whole_p99": percentile(everything, 0.99),
        }
    return found


def prefill(engine: Engine, tokens: int, vocab: int, seed: int = 0) -> dict[str, float]:
    """One prompt on an idle engine, to its first token."""
    came = Came(time.perf_counter())
    key = submit(engine, came, next(prompts(1, tokens, vocab, seed)), 1)
    drive(engine, came, lambda: bool(came.times[key]))
    seconds = came.first(key) - came.began
    return {"first_token": seconds, "tokens_per_second": tokens / seconds}


def beside(engine: Engine, tokens: int, vocab: int, seed: int = 0, others: int = OTHERS) -> dict[str, float]:
    """A prompt alone, then one of the same length while `others` decode; `gap_p99` of the others meanwhile."""
    alone = prefill(engine, tokens, vocab, seed + 1)["first_token"]
    came = Came(time.perf_counter())
    new = NEW * 4  # nobody ends before the newcomer's first token
    busy = [submit(engine, came, ids, new) for ids in prompts(others, PROMPT, vocab, seed)]
    drive(engine, came, lambda: all(len(came.times[key]) >= 8 for key in busy))
    asked = time.perf_counter()
    newcomer = submit(engine, came, next(prompts(1, tokens, vocab, seed + 2)), 1)
    drive(engine, came, lambda: bool(came.times[newcomer]))
    first = came.first(newcomer)
    if any(len(came.times[key]) >= new for key in busy):
        raise RuntimeError(f"others ended before the newcomer's first token: more than {new} tokens are needed")
    waits = [gap for key in busy for gap in gaps([t for t in came.times[key] if t >= asked])]
    drive(engine, came, lambda: all(len(came.times[key]) >= new for key in busy))
    return {
        "alone": alone,
        "beside": first - asked,
        "slower": (first - asked) / alone,
        "gap_p99": percentile(waits, 0.99) if waits else first - asked,
    }
