"""Unlike engines behind one gateway process, and streams that are moved between them while the `openai` client reads.

Owns engines, their paced relays, the roster and the reading of streams. Must not know which engines they are.
`benchmarks/mixed_engines.py` runs the same at length, and with vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from tests.gateway.metered import Booked, free_port, records

from twinline.lines import roster
from twinline.lines.drivers import driver
from twinline.lines.fleet.gateways import said_by
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState
from twinline.verify.problems import Problem, examination

START_SECONDS = 240.0
PATIENT_SECONDS = 90.0  # for anything that a gateway or a stream is to do; only to fail with words instead of hanging
MOST_MOVES = 24  # in one turn
# In one turn. A kill may count as two breaks of the three that a stream has with few tokens between: the cut, and the
# relay that still accepts before the dead engine.
MOST_KILLS = 1
LEASH = 6  # events that a stream may go beyond what is waited for: some show nothing, as parts of a character do
HELD_SECONDS = 1.0  # from event to event beyond the leash: the gateway does not take the line for dead
QUESTIONS = ("👋 你好！12加30等于多少？", "🙂🙃 What is 14 times 6?", "Count the letter a in 字banana字. 🍌")


class Relay:
    """A port before an engine that lets one event pass each `pace` seconds, and can be cut.

    Of each request so many events as `leash` says; further ones only now and then, so that an answer is still under way
    when it is to be moved, however fast the machine is. None: all of them.
    """

    def __init__(self, target: int, pace: float) -> None:
        self.port, self.pace, self._target = free_port(), pace, target
        self.leash: int | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Every connection is reset."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        inner: asyncio.StreamWriter | None = None
        try:
            back, inner = await asyncio.open_connection("127.0.0.1", self._target)
            passed = _Passed()
            ways = [
                asyncio.ensure_future(_pass(reader, inner, passed)),
                asyncio.ensure_future(self._paced(back, writer, passed)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, inner):
                if each is not None:
                    each.transport.abort()

    async def _paced(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, passed: _Passed) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                *events, rest = data.split(b"\n\n")
                for event in events:
                    to.write(event + b"\n\n")
                    passed.events += 1
                    held = self.leash is not None and passed.events >= self.leash
                    await asyncio.sleep(HELD_SECONDS if held else self.pace)
                to.write(rest)


@dataclass
class _Passed:
    """Events of the request that is under way on a connection."""

    events: int = 0


async def _pass(reader: asyncio.StreamReader, to: asyncio.StreamWriter, passed: _Passed) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            passed.events = 0  # nothing but a new request comes from this side
            to.write(data)


class Engine:
    """One engine, started as its driver says, behind its relay."""

    def __init__(self, spec: LineSpec, pace: float) -> None:
        self.spec = spec
        self._port = free_port()
        self.relay = Relay(self._port, pace)
        self.state, self.born = LineState.SERVING, 0.0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        engine = driver(self.spec.engine)
        engine.check(self.spec)
        command = engine.command(self.spec, self._port)
        quiet = asyncio.subprocess.DEVNULL
        env = {**os.environ, "OMP_NUM_THREADS": "1", **command.env}
        self.process = await asyncio.create_subprocess_exec(*command.argv, env=env, stdout=quiet, stderr=quiet)
        assert engine.health_path is not None
        end = time.monotonic() + START_SECONDS
        while True:
            assert self.process.returncode is None, f"{self.spec.name} ended with code {self.process.returncode}"
            assert time.monotonic() < end, f"{self.spec.name} does not come up"
            with contextlib.suppress(OSError, TimeoutError, ValueError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(f"GET {engine.health_path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                status = await asyncio.wait_for(reader.readline(), 5)
                writer.close()
                if b" 200 " in status:
                    break
            await asyncio.sleep(0.1)
        self.born = time.time()
        if self.relay._server is None:
            await self.relay.open()

    async def kill(self) -> None:
        """kill -9. The relay is cut too: it may hold what the engine had made ahead."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self.relay.cut()

    async def end(self) -> None:
        await self.relay.close()
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 10)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


@dataclass
class Mixed:
    """A gateway process over engines of one class of weights."""

    home: Path
    model: str
    text: Path
    engines: dict[str, Engine]
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None
    generation: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self, order: Sequence[str]) -> None:
        """Tells the gateway; `order` is who is preferred."""
        self.generation += 1
        entries = tuple(
            roster.Entry(
                name=name, spec=engine.spec, state=engine.state, reason="the test says so",
                url=f"http://127.0.0.1:{engine.relay.port}", facts={"max_model_len": 512}, born=engine.born,
            )
            for name, engine in self.engines.items()
        )  # fmt: skip
        model = roster.ModelSpec(
            name=self.model, text=str(self.text), policy="prefer", order=tuple(order),
            goals=roster.Goals(ttft_seconds=3600, inter_token_seconds=3600),  # never late, however a relay holds it
        )  # fmt: skip
        spec = roster.GatewaySpec(port=self.port)
        told = roster.Roster(
            fleet="mixed", generation=self.generation, gateway=spec, models=(model,), entries=entries
        )  # fmt: skip
        roster.write(self.home, told)

    def leash(self, events: int | None) -> None:
        """How far each stream may go on the line that it comes to next; None: to its end."""
        for engine in self.engines.values():
            engine.relay.leash = events

    async def only(self, name: str, order: Sequence[str]) -> None:
        """The other lines drain: new streams can begin on no line but `name`."""
        for other, engine in self.engines.items():
            engine.state = LineState.SERVING if other == name else LineState.DRAINING
        self.write(order)
        await self.heard()

    async def all(self, order: Sequence[str]) -> None:
        """Every line serves."""
        for engine in self.engines.values():
            engine.state = LineState.SERVING
        self.write(order)
        await self.heard()

    async def drain(self, name: str, order: Sequence[str]) -> None:
        """As `twinline drain` does, but that the engine goes on; then it serves again, preferred as `order` says."""
        self.engines[name].state = LineState.DRAINING
        self.write(order)
        await self.heard(empty=name)
        await self.all(order)

    async def kill(self, name: str, order: Sequence[str]) -> None:
        """kill -9, and a new engine at the same port."""
        self.engines[name].state = LineState.STOPPED
        await self.engines[name].kill()
        self.write(order)
        await self.engines[name].start()
        await self.all(order)

    async def heard(self, empty: str | None = None) -> None:
        """Until the gateway works by the roster that was written last, and nothing is under way on line `empty`."""
        end = time.monotonic() + PATIENT_SECONDS
        while True:
            said = await said_by(self.home, 0, PATIENT_SECONDS)
            flying = [line for line in said.lines if line["name"] == empty and line["in_flight"]]
            if said.generation == self.generation and not flying:
                return
            assert time.monotonic() < end, f"the gateway is at {said.generation}, not {self.generation}: {flying}"
            await asyncio.sleep(0.05)

    async def shut(self) -> None:
        """The gateway ends in order: what it has to book is booked."""
        assert self.process is not None
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), PATIENT_SECONDS)

    def booked(self) -> dict[str, list[Booked]]:
        return records(self.home)


@contextlib.asynccontextmanager
async def mixed(home: Path, model: str, text: Path, specs: Sequence[LineSpec], pace: float) -> AsyncIterator[Mixed]:
    made = Mixed(home, model, text, {spec.name: Engine(spec, pace) for spec in specs})
    try:
        await asyncio.gather(*(engine.start() for engine in made.engines.values()))
        made.write([spec.name for spec in specs])
        argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(home), "--log-level", "error"]
        env = {**os.environ, "TWINLINE_HOME": str(home)}
        made.process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=asyncio.subprocess.PIPE)
        assert made.process.stdout is not None
        assert b'"ready":true' in await asyncio.wait_for(made.process.stdout.readline(), 60)
        yield made
    finally:
        if made.process is not None and made.process.returncode is None:
            made.process.terminate()
            await made.process.wait()
        await asyncio.gather(*(engine.end() for engine in made.engines.values()))


@dataclass
class Read:
    """One stream as the `openai` client gave it."""

    name: str
    question: str
    greedy: bool
    reasoning: str = ""
    content: str = ""
    finish: str | None = None
    usage: tuple[int, int] | None = None
    ids: set[str] = field(default_factory=set)
    roles: int = 0
    chunks: int = 0
    over: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def text(self) -> tuple[str, str]:
        return self.reasoning, self.content

    @property
    def shown(self) -> int:
        """Characters."""
        return len(self.reasoning) + len(self.content)

    @property
    def under_way(self) -> bool:
        """Its client has some of it, and more has to come."""
        return self.shown > 0 and self.finish is None and not self.over


async def read(url: str, model: str, one: Read, **fields: Any) -> Read:
    """Streams one chat by the unmodified client, and blames what breaks the stream's rules."""
    extra = {"x-request-id": one.name}
    sampling: dict[str, Any] = {"temperature": 0.0} if one.greedy else {"temperature": 0.7, "seed": len(one.question)}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        try:
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": one.question}], stream=True, max_tokens=200,
                stream_options={"include_usage": True}, extra_headers=extra, **(sampling | fields),
            )  # fmt: skip
            async for chunk in stream:
                one.chunks += 1
                one.ids.add(chunk.id)
                if chunk.usage is not None:
                    one.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    if one.finish is None:
                        one.faults.append("usage before the finish reason")
                for choice in chunk.choices:
                    _take(one, choice)
        except openai.OpenAIError as error:
            one.faults.append(f"{type(error).__name__}: {error}")
    one.over = True
    if len(one.ids) != 1 or one.roles != 1:
        one.faults.append(f"{len(one.ids)} ids, {one.roles} roles")
    if one.finish not in ("stop", "length") or one.usage is None:
        one.faults.append(f"finish {one.finish}, usage {one.usage}")
    return one


def _take(one: Read, choice: Any) -> None:
    delta = choice.delta
    one.roles += delta.role is not None
    reasoning, content = getattr(delta, "reasoning_content", None) or "", delta.content or ""
    if one.finish is not None:
        one.faults.append("something after the finish reason")
    if reasoning and one.content:
        one.faults.append("reasoning after content")
    one.reasoning += reasoning
    one.content += content
    one.finish = choice.finish_reason or one.finish


@dataclass
class Outcome:
    """`reads` under moves, `plain` the same ones unbroken on the first line. `ways` counts the lines they went over.

    `moves` counts, for each kind of move of each line, the streams that were under way there.
    """

    plain: list[Read] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    equal: int = 0
    greedy: int = 0
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def moved(self) -> int:
        return sum(count for way, count in self.ways.items() if ">" in way)


def exam(count: int) -> list[Problem]:
    """Problems of all kinds in both languages, those with long answers."""
    found = [problem for problem in examination(count * 4, 3) if problem.kind in ("story", "multiply", "add", "order")]
    return found[:count]


async def moved_about(run: Mixed, problems: Sequence[Problem], rounds: int, seed: int, kills: bool) -> Outcome:
    """Every question greedy and sampled: first unbroken, then while lines are drained and killed by turns.

    A turn begins on each line in its turn, and every second one is with kills. Does not read clocks: see `_turn`.
    """
    lot = random.Random(seed)
    first, second = run.engines
    out = Outcome()
    questions = [problem.question for problem in problems] + list(QUESTIONS)
    asked = [(question, greedy) for question in questions for greedy in (True, False)]
    for number, (question, greedy) in enumerate(asked):
        out.plain.append(Read(f"plain{number}", question, greedy))
    await asyncio.gather(*(read(run.url, f"{run.model}@{first}", one) for one in out.plain))
    for turn in range(rounds):
        reads = [Read(f"turn{turn}-{number}", one.question, one.greedy) for number, one in enumerate(out.plain)]
        start, other = (first, second) if turn % 2 == 0 else (second, first)
        out.moves += await _turn(run, reads, (start, other), lot, deadly=kills)
        out.reads += reads
    await run.shut()
    _judge(run, problems, out)
    return out


async def _turn(
    run: Mixed, reads: Sequence[Read], lines: tuple[str, str], lot: random.Random, deadly: bool
) -> Counter[str]:
    """All begin on the first of `lines`. They are moved when each that has not ended has shown some more to its client,
    and they can go little farther than that before they are moved. A deadly turn begins with a kill of each line.
    """
    here, there = lines
    moves: Counter[str] = Counter()
    await run.only(here, lines)
    steps = lot.randint(2, 5)
    run.leash(steps + LEASH)
    streaming = asyncio.gather(*(read(run.url, run.model, one) for one in reads))
    killed = 0
    for number in range(MOST_MOVES):
        await _shown(reads, steps)
        if not any(one.under_way for one in reads):
            break
        if not number:
            await run.all(lines)
        steps = lot.randint(2, 5)
        run.leash(steps + LEASH)
        kill = deadly and killed < MOST_KILLS and (number < 2 or lot.random() < 0.5)
        killed += kill
        moves[f"{'kill' if kill else 'drain'} {here}"] += sum(one.under_way for one in reads)
        await (run.kill if kill else run.drain)(here, [there, here])
        here, there = there, here
    run.leash(None)
    await streaming
    return moves


async def _shown(reads: Sequence[Read], steps: int) -> None:
    """Until each of them has shown `steps` characters more, or has ended."""
    goals = [one.shown + steps for one in reads]
    end = time.monotonic() + PATIENT_SECONDS
    while waits := [one.name for one, goal in zip(reads, goals) if not one.over and one.shown < goal]:
        assert time.monotonic() < end, f"nothing more of {waits}"
        await asyncio.sleep(0.01)


def _judge(run: Mixed, problems: Sequence[Problem], out: Outcome) -> None:
    """Fills `out` in, by what the clients saw and what was booked."""
    booked = run.booked()
    told = {problem.question: problem for problem in problems}
    for kind, reads in (("unbroken", out.plain), ("moved", out.reads)):
        marks = [told[one.question].solved_by(one.content) for one in reads if one.question in told and not one.greedy]
        out.solved[kind] = (sum(marks), len(marks))
    plain = {(one.question, one.greedy): one for one in out.plain}
    speaks_broken = any("\ufffd" in one.reasoning + one.content for one in out.plain)  # a model of random weights
    for one in [*out.plain, *out.reads]:
        if "\ufffd" in one.reasoning + one.content and not speaks_broken:
            one.faults.append("a character was broken")
        record = booked.get(one.name, [])
        out.wrong += [f"{one.name} ({one.question!r}): {fault}" for fault in one.faults]
        if len(record) != 1 or one.usage != (record[0].prompt, record[0].completion):
            out.wrong.append(f"{one.name}: told {one.usage}, booked {record}")
            continue
        if one.name.startswith("turn"):
            out.ways[">".join(record[0].lines)] += 1
    for one in out.reads:
        if one.greedy:
            before = plain[one.question, True]
            out.greedy += 1
            same = (one.text, one.finish, one.usage) == (before.text, before.finish, before.usage)
            out.equal += same
