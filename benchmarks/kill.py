"""Two native lines under load, of which one after the other is killed, stopped, cut off or made to answer 500.

    .venv/bin/python benchmarks/kill.py --events 100
    .venv/bin/python benchmarks/kill.py --overload 600
    .venv/bin/python benchmarks/kill.py --devices cuda cpu

Real processes: two workers of the native engine with tiny-r1, the gateway, and a relay before each worker that can be
cut or answer 500. `--streams` streams are under way at any time, at temperature 0. Each must be, byte for byte and in
its usage, what it is in a run without failures. Unlike devices may part where two tokens are equally likely but for
rounding: then each answer that an undisturbed line gives is right, and how many questions have two is told. The pause
is the longest wait for a stream's next event around each failure. `--overload` offers five times what the lines can do
and counts how often a healthy line is put out of service. Exit code 0 only when every stream was right, no pause too
long and no line put out for nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]  # the judge is the tests' own

from tests.gateway.exactness.cases import Case  # noqa: E402
from tests.gateway.exactness.client import Delivered, Reply, ask, read  # noqa: E402

from twinline.lines import roster  # noqa: E402
from twinline.lines.http import Target  # noqa: E402
from twinline.lines.spec import LineSpec  # noqa: E402
from twinline.lines.state import LineState  # noqa: E402

MODEL = "tiny-r1"
FOLDER = ROOT / "src/twinline/models" / MODEL
KINDS = ("kill", "stop", "cut", "500")
PAUSE_SECONDS = {"kill": 2.0, "stop": 15.0, "cut": 2.0, "500": 2.0}
QUESTIONS = (
    "What is {a} + {b}?",
    "What is {a} times {b}?",
    "Is {a} greater than {b}?",
    "{a}加{b}等于多少？",
    "Count from {a}.",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Relay:
    """A port before a line's own, that can be cut or answer 500 to what comes. Bytes pass as they are."""

    def __init__(self, port: int) -> None:
        self.port, self._target = free_port(), port
        self._server: asyncio.Server | None = None
        self._failing = False
        self._pairs: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._failing = False
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)

    async def cut(self) -> None:
        """Every connection is reset and no new one taken."""
        assert self._server is not None
        self._server.close()
        self._server = None
        for writer in tuple(self._pairs):
            reset(writer)

    def fail(self) -> None:
        """Requests on new connections get a 500; those on old ones too, which are closed for it between two answers."""
        self._failing = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner: asyncio.StreamWriter | None = None
        self._pairs.add(writer)
        try:
            back, inner = await asyncio.open_connection("127.0.0.1", self._target)
            self._pairs.add(inner)
            works = (self._forth(reader, inner, writer), pass_on(back, writer))
            both = [asyncio.ensure_future(work) for work in works]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            reset(writer)
        finally:
            for each in (writer, inner):
                if each is not None:
                    self._pairs.discard(each)
                    each.close()

    async def _forth(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._failing:
                    error = b'{"error": {"message": "the engine fails", "type": "server_error", "code": "line_failed"}}'
                    back.write(
                        b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\nconnection: close\r\n"
                        b"content-length: %d\r\n\r\n%b" % (len(error), error)
                    )
                    return
                to.write(data)


async def pass_on(reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            to.write(data)


def reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Worker:
    """One process of the native engine, behind its relay."""

    def __init__(self, name: str, device: str, slots: int, waiting: int) -> None:
        self.name, self.device, self.port = name, device, free_port()
        self.relay = Relay(self.port)
        self.born = 0.0
        self._options = ["--threads", "1", "--max-running", str(slots), "--max-waiting", str(waiting)]
        self.process: asyncio.subprocess.Process | None = None
        self.facts: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        argv = [sys.executable, "-m", "twinline.engine.worker", "--model", str(FOLDER), "--name", MODEL]
        argv += ["--host", "127.0.0.1", "--port", str(self.port), "--watch-stdin", "--log-level", "error"]
        argv += ["--device", self.device]
        self.process = await asyncio.create_subprocess_exec(
            *argv,
            *self._options,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        self.facts = json.loads(await self.process.stdout.readline())
        if not self.facts.get("ready"):
            raise RuntimeError(f"line {self.name} did not start: {self.facts}")
        self.born = time.time()
        await self.relay.open()

    async def fail(self, kind: str) -> None:
        assert self.process is not None
        if kind == "kill":
            self.process.kill()
        elif kind == "stop":
            self.process.send_signal(signal.SIGSTOP)
        elif kind == "cut":
            await self.relay.cut()
        else:
            self.relay.fail()

    async def mend(self, kind: str) -> None:
        assert self.process is not None
        if kind == "kill":
            await self.process.wait()
            await self.start()
        elif kind == "stop":
            self.process.send_signal(signal.SIGCONT)
        else:
            await self.relay.open()

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            await self.process.wait()


@dataclass
class Fleet:
    """The two lines, the gateway process, and the roster between them."""

    directory: Path
    workers: list[Worker]
    port: int
    process: asyncio.subprocess.Process | None = None
    generation: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self) -> None:
        """Tells the gateway which engines are there, as the control side would."""
        self.generation += 1
        spec = roster.GatewaySpec(port=self.port)
        entries = tuple(
            roster.Entry(
                name=worker.name,
                spec=LineSpec(name=worker.name, model=MODEL, engine="native", weights=str(FOLDER)),
                state=LineState.SERVING, reason="the benchmark says so", url=f"http://127.0.0.1:{worker.relay.port}",
                facts=worker.facts, born=worker.born,
            )
            for worker in self.workers
        )  # fmt: skip
        model = roster.ModelSpec(name=MODEL, text=str(FOLDER), policy="fastest")
        told = roster.Roster(fleet="kill", generation=self.generation, gateway=spec, models=(model,), entries=entries)
        roster.write(self.directory, told)

    async def start(self, verbose: bool) -> None:
        await asyncio.gather(*(worker.start() for worker in self.workers))
        self.write()
        argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(self.directory)]
        self.process = await asyncio.create_subprocess_exec(
            *argv, "--log-level", "warning" if verbose else "critical", stdout=subprocess.PIPE,
            env={**os.environ, "TWINLINE_HOME": str(self.directory / "home")},
        )  # fmt: skip
        assert self.process.stdout is not None
        await asyncio.wait_for(self.process.stdout.readline(), 60)

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 20)
            except TimeoutError:
                self.process.kill()
        await asyncio.gather(*(worker.end() for worker in self.workers))

    async def lines(self) -> dict[str, dict[str, str]]:
        """What the gateway says of its lines."""
        told = await fetch(self.url, "/health")
        found: dict[str, dict[str, str]] = told["models"][MODEL]["lines"]
        return found

    async def healed(self, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while any(line["state"] != "serving" for line in (await self.lines()).values()):
            if time.monotonic() > end:
                raise RuntimeError(f"a line did not come back within {seconds:g} s: {await self.lines()}")
            await asyncio.sleep(0.2)

    def metered(self) -> dict[str, int]:
        """Sums that `twinline usage` gives."""
        argv = [sys.executable, "-m", "twinline.cli", "usage", "--by", "total", "--json"]
        env = {**os.environ, "TWINLINE_HOME": str(self.directory / "home")}
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True, timeout=60)
        sums = json.loads(done.stdout)["totals"]  # one for each currency
        names = ("requests", "unfinished", "prompt_tokens", "completion_tokens", "waste_tokens")
        return {name: sum(row[name] for row in sums) for name in names}


async def fetch(url: str, path: str) -> Any:
    target = Target.parse(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        data = await asyncio.wait_for(reader.read(-1), 20)
    finally:
        writer.close()
    return json.loads(data.partition(b"\r\n\r\n")[2])


@contextlib.asynccontextmanager
async def fleet(given: argparse.Namespace) -> AsyncIterator[Fleet]:
    with tempfile.TemporaryDirectory() as made:
        workers = [Worker(n, device, given.slots, given.waiting) for n, device in zip("ab", given.devices)]
        run = Fleet(Path(made), workers, free_port())
        try:
            await run.start(given.verbose)
            yield run
        finally:
            await run.end()


@dataclass
class Stream:
    """One stream under way or over; `began` and its arrivals are monotonic seconds."""

    question: int
    began: float
    reply: Reply = field(default_factory=Reply)
    ended: float = 0.0


@dataclass(frozen=True)
class Mark:
    """One failure: when it came, and how many streams were on the line."""

    kind: str
    at: float
    struck: int


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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=100, help="failures in all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="in this order, over and over")
    parser.add_argument("--devices", nargs=2, default=["cpu", "cpu"], help="of the two lines")
    parser.add_argument("--streams", type=int, default=200, help="under way at any time")
    parser.add_argument("--tokens", type=int, default=160, help="of each answer")
    parser.add_argument("--down-seconds", type=float, default=6.0, help="from a failure to its repair")
    parser.add_argument("--slots", type=int, default=256, help="streams at once on a line: all, when it is alone")
    parser.add_argument("--waiting", type=int, default=256, help="requests that may wait at a line")
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="the overload run in place of the failures")
    parser.add_argument("--capacity-requests", type=int, default=400, help="of the overload's measurement of capacity")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unmetered", action="store_true", help="do not compare with the store's usage")
    parser.add_argument("--verbose", action="store_true", help="show the gateway's warnings")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    logging.basicConfig(level=logging.ERROR)
    what: Callable[[argparse.Namespace], Any] = overload if given.overload else failures
    return 0 if uvloop.run(what(given)) else 1


if __name__ == "__main__":
    sys.exit(main())
