"""Streams that are kept under way, and what is right about each.

Owns the questions, the judgement of an answer and the measure of a pause. Must not know what fails, or when.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.kill.lines import MODEL
from tests.gateway.exactness.cases import Case
from tests.gateway.exactness.client import Delivered, Reply, ask, read


@dataclass
class Stream:
    """One stream under way or over; `began` and its arrivals are monotonic seconds."""

    question: int
    began: float
    reply: Reply = field(default_factory=Reply)
    ended: float = 0.0


@dataclass
class Load:
    """Keeps `at_once` streams under way, over a fixed list of questions, until it is told to stop."""

    url: str
    questions: list[str]
    tokens: int
    streams: list[Stream] = field(default_factory=list)
    stopping: bool = False

    def case(self, question: int) -> Case:
        return Case(0, question, "-", "chat", self.questions[question], self.tokens, ())

    def body(self, question: int) -> dict[str, Any]:
        return self.case(question).body(MODEL) | {"temperature": 0.0, "ignore_eos": True}

    async def one(self, question: int) -> Stream:
        stream = Stream(question, time.monotonic())
        self.streams.append(stream)
        with contextlib.suppress(TimeoutError, OSError):
            stream.reply = await ask(self.url, "/v1/chat/completions", self.body(question), 300.0)
        stream.ended = time.monotonic()
        return stream

    async def run(self, at_once: int) -> None:
        order = iter(range(1_000_000_000))

        async def work() -> None:
            await asyncio.sleep(random.random())
            while not self.stopping:
                await self.one(next(order) % len(self.questions))

        await asyncio.gather(*(work() for _ in range(at_once)))

    def delivered(self, stream: Stream) -> Delivered:
        return read(stream.reply, self.case(stream.question))


Right = dict[int, set[tuple[str, str, str | None, tuple[int, int]]]]


def said(got: Delivered) -> tuple[str, str, str | None, tuple[int, int]]:
    usage = got.usage or {}
    counts = (usage.get("prompt_tokens", -1), usage.get("completion_tokens", -1))
    return got.reasoning[0], got.content[0], got.finish.get(0), counts


async def unbroken(load: Load, at_once: int, rounds: int, unlike: bool) -> Right:
    """What each question is answered without failures, asked several times under load: by lines that are alike it has
    to be the same."""
    right: Right = {}
    for _ in range(rounds):
        waiting = iter(range(len(load.questions)))

        async def work(waiting: Any = waiting) -> None:
            for question in waiting:
                stream = await load.one(question)
                got = load.delivered(stream)
                if got.faults or got.error or not got.done:
                    raise RuntimeError(f"an undisturbed stream failed: {got.faults or got.error}")
                right.setdefault(question, set()).add(said(got))

        await asyncio.gather(*(work() for _ in range(at_once)))
    load.streams.clear()
    if parted := [question for question, answers in right.items() if len(answers) > 1]:
        if not unlike:
            raise RuntimeError(f"questions {parted} have two answers without any failure: the test cannot judge")
        print(f"  {len(parted)} of {len(right)} questions are answered in two ways by lines that are unlike")
    return right


def judged(load: Load, right: Right) -> list[str]:
    """What is wrong, stream by stream."""
    wrong = []
    for stream in load.streams:
        got = load.delivered(stream)
        if got.faults or got.error or not got.done:
            why = got.faults or got.error or "no [DONE]"
            wrong.append(f"question {stream.question}: status {stream.reply.status}, {why}")
        elif said(got) not in right[stream.question]:
            wrong.append(f"question {stream.question}: another text or usage than in the unbroken run")
    return wrong


def pauses(streams: list[Stream], at: float, until: float) -> list[float]:
    """For each stream under way at `at`, its longest wait for news that began before `until` and ended after `at`."""
    found = []
    for stream in streams:
        arrivals = [stream.began, *stream.reply.arrivals]
        if stream.began < at < (stream.ended or until) and stream.reply.arrivals:
            gaps = [then - before for before, then in itertools.pairwise(arrivals) if then > at and before < until]
            found.append(max(gaps, default=0.0))
    return found


def spread(values: list[float]) -> str:
    if not values:
        return "none"
    values = sorted(values)

    def at(share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    return f"p50 {at(0.5):.2f}  p95 {at(0.95):.2f}  p99 {at(0.99):.2f}  longest {values[-1]:.2f} s (of {len(values)})"


async def offer(load: Load, rate: float, seconds: float, lot: random.Random) -> None:
    """Requests at random moments, whatever becomes of those before; at most 4,000 under way."""
    tasks: set[asyncio.Task[Stream]] = set()
    due = time.monotonic()
    end = due + seconds
    number = 0
    while due < end:
        due += lot.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if len(tasks) < 4000:
            number += 1
            task = asyncio.create_task(load.one(number % len(load.questions)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
