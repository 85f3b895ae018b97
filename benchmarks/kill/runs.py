"""The two runs: one failure after the other under steady load, and five times the load that the lines can take.

Owns what counts as passed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks.kill.fleet import fetch, fleet
from benchmarks.kill.load import Load, Right, judged, offer, pauses, spread, unbroken

KINDS = ("kill", "stop", "cut", "500")
PAUSE_SECONDS = {"kill": 2.0, "stop": 15.0, "cut": 2.0, "500": 2.0}
QUESTIONS = (
    "What is {a} + {b}?",
    "What is {a} times {b}?",
    "Is {a} greater than {b}?",
    "{a}加{b}等于多少？",
    "Count from {a}.",
)


@dataclass(frozen=True)
class Mark:
    """One failure: when it came, and how many streams were on the line."""

    kind: str
    at: float
    struck: int


async def failures(given: argparse.Namespace) -> bool:
    """One failure after the other under steady load."""
    lot = random.Random(given.seed)
    questions = [lot.choice(QUESTIONS).format(a=lot.randrange(100), b=lot.randrange(100)) for _ in range(given.streams)]
    async with fleet(given) as run:
        load = Load(run.url, questions, given.tokens)
        unlike = len(set(given.devices)) > 1
        rounds = 4 if unlike else 2
        print(f"unbroken run: {len(questions)} questions, {given.tokens} tokens each, {rounds} times", flush=True)
        began = time.monotonic()
        right = await unbroken(load, given.streams, rounds, unlike)
        before = run.metered() if not given.unmetered else {}
        print(
            f"  {rounds * len(questions) * given.tokens / (time.monotonic() - began):.0f} tokens/s in all", flush=True
        )
        loading = asyncio.create_task(load.run(given.streams))
        await asyncio.sleep(2)
        marks: list[Mark] = []
        plan = [kind for _, kind in zip(range(given.events), given.kinds * given.events)]
        for number, kind in enumerate(plan, 1):
            await asyncio.sleep(lot.uniform(0.2, 3.0))
            busy = [(await fetch(worker.url, "/health"))["running"] for worker in run.workers]
            # By lot, and by what there is to break: a line that is empty breaks nothing.
            worker, struck = lot.choices(list(zip(run.workers, busy)), [count + 0.1 for count in busy])[0]
            at = time.monotonic()
            await worker.fail(kind)
            await asyncio.sleep(given.down_seconds)
            await worker.mend(kind)
            run.write()
            await run.healed()
            marks.append(Mark(kind, at, struck))
            if number % 4 == 0:
                print(f"  {number} of {len(plan)} failures, {len(load.streams)} streams begun", flush=True)
        load.stopping = True
        await loading
        ok = report(load, right, marks, given.down_seconds)
        if not given.unmetered:
            ok &= metering(load, before, run.metered())
        return ok


def report(load: Load, right: Right, marks: list[Mark], seconds: float) -> bool:
    """Pauses are those that began within `seconds` of a failure: later ones are the price of starting an engine."""
    wrong = judged(load, right)
    print(f"\n{len(load.streams)} streams over {len(marks)} failures: {len(load.streams) - len(wrong)} right")
    for line, count in Counter(wrong).most_common(10):
        print(f"  {count} x {line}")
    ok = not wrong
    for kind in KINDS:
        events = [mark for mark in marks if mark.kind == kind]
        if not events:
            continue
        per_event = [pauses(load.streams, mark.at, mark.at + seconds) for mark in events]
        every = [pause for event in per_event for pause in event]
        longest = [max(event, default=0.0) for event in per_event]
        late = sum(pause > PAUSE_SECONDS[kind] for pause in longest)
        ok &= not late
        on_it = sum(mark.struck for mark in events)
        print(
            f"{kind}: {len(events)} times, with {on_it} streams on the line; pauses of all under way: {spread(every)}"
        )
        print(f"  longest per failure: {spread(longest)}; over {PAUSE_SECONDS[kind]:g} s: {late}")
    calm = [gap for stream in load.streams[:50] for gap in [stream.reply.longest_gap]]
    print(f"for comparison, the longest gap of single streams: {spread(calm)}")
    return ok


def metering(load: Load, before: dict[str, int], after: dict[str, int]) -> bool:
    """Usage in the store against what clients were told: each stream counted once."""
    told: Counter[str] = Counter()
    for stream in load.streams:
        usage = load.delivered(stream).usage
        if usage is not None:
            told.update(requests=1, prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
    booked = {name: after[name] - before[name] for name in told}
    print(f"metered {booked}; clients were told {dict(told)}")
    return booked == dict(told)


async def overload(given: argparse.Namespace) -> bool:
    """Five times the requests that the lines can answer, for some time: which of them were put out of service?"""
    lot = random.Random(given.seed)
    questions = [lot.choice(QUESTIONS).format(a=lot.randrange(100), b=lot.randrange(100)) for _ in range(200)]
    async with fleet(given) as run:
        load = Load(run.url, questions, given.tokens)
        began = time.monotonic()
        waiting = iter(range(given.capacity_requests))

        async def work() -> None:
            for number in waiting:
                await load.one(number % len(questions))

        await asyncio.gather(*(work() for _ in range(2 * given.slots)))
        capacity = given.capacity_requests / (time.monotonic() - began)
        print(f"capacity {capacity:.1f} requests/s; offering {5 * capacity:.1f} for {given.overload:g} s", flush=True)
        load.streams.clear()
        ejected: Counter[str] = Counter()
        offering = asyncio.create_task(offer(load, 5 * capacity, given.overload, lot))
        while not offering.done():
            await asyncio.sleep(0.2)
            for name, line in (await run.lines()).items():
                if line["state"] != "serving":
                    ejected[f"{name}: {line['reason']}"] += 1
        await offering
        outcomes: Counter[str] = Counter()
        for stream in load.streams:
            got = load.delivered(stream)
            error = (got.error or {}).get("code") or (got.error or {}).get("message")
            outcomes["finished" if got.done and not got.faults else f"{stream.reply.status} {error or got.faults}"] += 1
        print(f"{len(load.streams)} requests: {dict(outcomes)}")
        print(f"looks at which a healthy line was out of service: {sum(ejected.values())} {dict(ejected)}")
        allowed = sum(count for what, count in outcomes.items() if what == "finished" or what.startswith("429"))
        return not ejected and allowed == len(load.streams) and outcomes["finished"] > 0
