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
from dataclasses import dataclass, field, replace
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
MOST_MOVES = 24  # in one turn
QUESTIONS = ("👋 你好！12加30等于多少？", "🙂🙃 What is 14 times 6?", "Count the letter a in 字banana字. 🍌")


class Relay:
    """A port before an engine that lets one event pass each `pace` seconds, and can be cut."""

    def __init__(self, target: int, pace: float) -> None:
        self.port, self.pace, self._target = free_port(), pace, target
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
            ways = [asyncio.ensure_future(_pass(reader, inner)), asyncio.ensure_future(self._paced(back, writer))]
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

    async def _paced(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                *events, rest = data.split(b"\n\n")
                for event in events:
                    to.write(event + b"\n\n")
                    await asyncio.sleep(self.pace)
                to.write(rest)


async def _pass(reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
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
        model = roster.ModelSpec(name=self.model, text=str(self.text), policy="prefer", order=tuple(order))
        spec = roster.GatewaySpec(port=self.port)
        told = roster.Roster(
            fleet="mixed", generation=self.generation, gateway=spec, models=(model,), entries=entries
        )  # fmt: skip
        roster.write(self.home, told)

    async def drain(self, name: str, order: Sequence[str]) -> None:
        """As `twinline drain` does, but that the engine goes on; then it serves again, preferred as `order` says."""
        self.engines[name].state = LineState.DRAINING
        self.write(order)
        await self.empty(name)
        self.engines[name].state = LineState.SERVING
        self.write(order)

    async def kill(self, name: str, order: Sequence[str]) -> None:
        """kill -9, and a new engine at the same port."""
        self.engines[name].state = LineState.STOPPED
        await self.engines[name].kill()
        self.write(order)
        await self.engines[name].start()
        self.engines[name].state = LineState.SERVING
        self.write(order)

    async def empty(self, name: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while True:
            said = await said_by(self.home, 0, 5.0)
            if said.generation == self.generation and not any(
                line["in_flight"] for line in said.lines if line["name"] == name
            ):
                return
            assert time.monotonic() < end, f"{name} keeps its streams"
            await asyncio.sleep(0.05)

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
    faults: list[str] = field(default_factory=list)

    @property
    def text(self) -> tuple[str, str]:
        return self.reasoning, self.content


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
    """`reads` under moves, `plain` the same ones unbroken on the first line. `ways` counts the lines they went over."""

    plain: list[Read] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
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
    """Every question greedy and sampled: first unbroken, then while lines are drained and killed by turns."""
    lot = random.Random(seed)
    first, second = run.engines
    out = Outcome()
    questions = [problem.question for problem in problems] + list(QUESTIONS)
    asked = [(question, greedy) for question in questions for greedy in (True, False)]
    for number, (question, greedy) in enumerate(asked):
        out.plain.append(Read(f"plain{number}", question, greedy))
    await asyncio.gather(*(read(run.url, f"{run.model}@{first}", one) for one in out.plain))
    for turn in range(rounds):
        reads = [replace(one, name=f"turn{turn}-{number}", reasoning="", content="", finish=None, usage=None, roles=0,
                         chunks=0, ids=set(), faults=[]) for number, one in enumerate(out.plain)]  # fmt: skip
        start, other = (first, second) if turn % 2 == 0 else (second, first)
        run.write([start, other])
        await asyncio.sleep(0.3)
        streaming = asyncio.gather(*(read(run.url, run.model, one) for one in reads))
        here, there = start, other
        deadly = kills and turn % 2 == 1
        for _ in range(MOST_MOVES):
            await asyncio.sleep(lot.uniform(0.25, 0.6))
            if streaming.done():
                break
            move = run.kill if deadly and lot.random() < 0.5 else run.drain
            await move(here, [there, here])
            here, there = there, here
        await streaming
        out.reads += reads
    await asyncio.sleep(0.3)
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
    return out
