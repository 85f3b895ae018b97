"""A metered load: real engines behind relays that count, clients that leave, and the books compared request by request.

Owns three counts of the same tokens: the engines' own, what their connections carried, and what was metered. Must not
know how the gateway under test is started. `benchmarks/metering.py` runs the same at full size.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import httptools

from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines.http import Target

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src/twinline/models/tiny-r1"
MODEL = "tiny-r1"
OURS = "verify-"  # how the house's own test requests are called
_TOKENS = re.compile(rb'"token_ids":\[([0-9,]*)\]')
_ID = re.compile(rb'^data: \{"id":"([^"]*)"')
_PIECE = re.compile(rb'"(?:text|content|reasoning_content)":"[^"]')
_FINISH = re.compile(rb'"finish_reason":"')
PATIENT_SECONDS = 90.0  # for anything to happen; only to fail with words instead of hanging
CHARACTER_TOKENS = 4  # a whole character is in so many tokens: a byte each, at most
WORDS = ("What is 12 + 30?", "12加30等于多少？", "Count from 7.", "👋 hello", "Is 4 greater than 9?")
STOPS = ("=", "\n", "0", "</think>")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(what: Callable[[], object]) -> None:
    """Until `what` is true. Looked at so often that little happens between."""
    end = time.monotonic() + PATIENT_SECONDS
    while not what():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)


@dataclass
class Attempt:
    """One request at a line: what it was to go on after, and what the line sent, with the times of sending.

    `over`: it was sent to its finish, or the connection is no more.
    """

    prefix: list[int]
    name: str = ""
    most: int = 0
    ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finished: bool = False
    over: bool = False

    def midway(self, more: int) -> bool:
        """Some characters were sent, and `more` tokens have to come unless it ends by itself."""
        return not self.over and len(self.ids) >= CHARACTER_TOKENS and self.most - len(self.ids) >= more

    def until(self, moment: float | None) -> int:
        return len(self.ids) if moment is None else sum(at <= moment for at in self.times)


class Relay:
    """A port before an engine. `attempts` are the requests that went through, by the name they have at the line."""

    def __init__(self) -> None:
        self.port, self.target = free_port(), 0
        self.attempts: dict[str, Attempt] = {}
        self.by_client: dict[str, list[Attempt]] = defaultdict(list)  # by the name that the client gave
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def carried(self) -> int:
        return sum(len(attempt.ids) for attempt in self.attempts.values())

    def sent(self, client: str) -> int:
        """Tokens that came from here for one request, all its choices together."""
        return sum(len(attempt.ids) for attempt in self.by_client.get(client, ()))

    def asked(self, body: bytes) -> Attempt:
        request = json.loads(body)
        name, prefix = request["request_id"], request.get("output_prefix_ids") or []
        attempt = self.attempts[name] = Attempt(prefix, name, request["max_tokens"] - len(prefix))
        self.by_client[name.partition("-")[0]].append(attempt)
        return attempt

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        inner: asyncio.StreamWriter | None = None
        mine: list[Attempt] = []
        try:
            back, inner = await asyncio.open_connection("127.0.0.1", self.target)
            ways = [
                asyncio.ensure_future(self._forth(reader, inner, mine)),
                asyncio.ensure_future(self._back(back, writer)),
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
            for attempt in mine:
                attempt.over = True
            for each in (writer, inner):
                if each is not None:
                    each.transport.abort()

    async def drained(self) -> None:
        """Until what the connections that are open now still hold was read; the engine behind them must be gone."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=PATIENT_SECONDS)
            assert not late, "a connection to a dead engine does not end"

    async def _forth(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, mine: list[Attempt]) -> None:
        bodies = _Bodies(lambda body: mine.append(self.asked(body)))
        parser = httptools.HttpRequestParser(bodies)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                parser.feed_data(data)
                to.write(data)

    async def _back(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """What is counted has been read from the engine, whether the gateway takes it or not."""
        rest = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    found = _TOKENS.search(line)
                    if found is not None and (name := _ID.match(line)) is not None:
                        ids = [int(each) for each in found.group(1).split(b",") if each]
                        attempt = self.attempts[name.group(1).decode()]
                        attempt.ids += ids
                        attempt.times += [time.monotonic()] * len(ids)
                        if _FINISH.search(line) is not None:
                            attempt.finished = attempt.over = True
                to.write(data)


class _Bodies:
    """Hands each request's body on when it is whole."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._parts: list[bytes] = []

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        if self._parts:
            self._take(b"".join(self._parts))
            self._parts.clear()


class Worker:
    """One engine's process behind its relay, native or simulated; `generated` is its count over all its lives."""

    def __init__(self, kind: str, **figures: float) -> None:
        self.kind, self.relay = kind, Relay()
        self._figures = {"decode_tokens_per_second": 400.0, "prefill_tokens_per_second": 50_000.0} | figures
        self._process: asyncio.subprocess.Process | None = None
        self._lost = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.relay.port}"

    async def start(self) -> None:
        argv = [sys.executable, "-m"]
        if self.kind == "native":
            argv += ["twinline.engine.worker", "--model", str(FOLDER), "--threads", "1", "--log-level", "error"]
            argv += ["--max-running", "64", "--max-waiting", "512"]
        else:
            argv += ["twinline.lines.simulated", "--text", str(FOLDER), "--slots", "64", "--max-waiting", "512"]
            for name, value in self._figures.items():
                argv += ["--" + name.replace("_", "-"), str(value)]
        argv += ["--name", MODEL, "--port", "0", "--watch-stdin"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, env=env)
        assert self._process.stdout is not None
        said = json.loads(await asyncio.wait_for(self._process.stdout.readline(), 60))
        self.relay.target = said["port"]
        if self.relay._server is None:
            await self.relay.open()

    async def kill(self) -> list[str]:
        """kill -9. What this life has counted dies with it; what its connections had carried by then stands for it.

        Returns the names, at the line, of the answers that it broke off for certain in their midst.
        """
        assert self._process is not None
        begun = [attempt for attempt in self.relay.attempts.values() if attempt.midway(1)]
        self._process.kill()
        await self._process.wait()
        await self.relay.drained()
        self._lost = self.relay.carried
        return [attempt.name for attempt in begun if not attempt.finished and len(attempt.ids) < attempt.most]

    async def generated(self) -> int:
        """Tokens made: by this life's own count, and before it by the connections of those that were killed."""
        told = await fetch(f"http://127.0.0.1:{self.relay.target}", "/health")
        return int(told["tokens_generated"]) + self._lost

    async def idle(self) -> None:
        end = time.monotonic() + PATIENT_SECONDS
        while (await fetch(f"http://127.0.0.1:{self.relay.target}", "/health"))["running"]:
            assert time.monotonic() < end, "the engine does not come to rest"
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self.relay._server is not None:
            await self.relay.close()


async def fetch(url: str, path: str) -> Any:
    target = Target.parse(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        data = await asyncio.wait_for(reader.read(-1), PATIENT_SECONDS)
    finally:
        writer.close()
    return json.loads(data.partition(b"\r\n\r\n")[2])


@dataclass
class Asked:
    """One request and what its client saw of it. `ended`: [DONE], or a whole body. `came`: pieces of text so far."""

    name: str
    form: str
    key: str
    leave: int | None  # tokens after which the client goes
    body: dict[str, Any]
    came: int = 0
    over: bool = False
    status: int = 0
    ended: bool = False
    left: bool = False
    left_at: float | None = None  # when it had left: monotonic seconds
    error: str | None = None
    usage: dict[str, Any] | None = None

    @property
    def stays(self) -> bool:
        """It has as many tokens as it may, each for its client."""
        return self.leave is None and "stop" not in self.body and bool(self.body.get("ignore_eos"))

    @property
    def finished(self) -> bool:
        return self.ended and self.status == 200 and self.error is None


@dataclass
class _Read:
    asked: Asked
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    looked: int = 0  # bytes of whole events

    def on_body(self, data: bytes) -> None:
        self.body += data
        if self.asked.body["stream"] and (end := self.body.rfind(b"\n\n")) > self.looked:
            events = bytes(self.body[self.looked : end]).split(b"\n\n")
            self.asked.came += sum(_PIECE.search(event) is not None for event in events)
            self.looked = end

    def on_message_complete(self) -> None:
        self.whole = True


@dataclass(frozen=True)
class Mix:
    """Shares of what requests are like. `leave` is the most tokens after which a client goes."""

    left: float = 0.04
    streamed: float = 0.7
    several: float = 0.1
    stops: float = 0.15
    leave: int = 48
    tokens: tuple[int, int] = (8, 64)


def draw(lot: random.Random, number: int, keys: Sequence[str], mix: Mix) -> Asked:
    """Request `number` by lot."""
    chat, streamed = lot.random() < 0.5, lot.random() < mix.streamed
    body: dict[str, Any] = {"model": MODEL, "max_tokens": lot.randint(*mix.tokens), "stream": streamed}
    body |= {"seed": number, "temperature": 1.0}
    words = f"{lot.choice(WORDS)} {number % 97}"
    if chat:
        body["messages"] = [{"role": "user", "content": words}]
    else:
        body["prompt"] = words
    form = ("chat" if chat else "completion") + ("" if streamed else "_whole")
    if lot.random() < mix.several:
        body["n"] = lot.randint(2, 4)
        form += "_n"
    if lot.random() < mix.stops:
        body["stop"] = lot.sample(STOPS, 2)
        form += "_stop"
    else:
        body["ignore_eos"] = lot.random() < 0.7
    if streamed:
        body["stream_options"] = {"include_usage": True}
    leave = lot.randint(1, mix.leave) if lot.random() < mix.left else None
    if leave is not None:  # else it might have come to its end before
        body["max_tokens"] = leave + 4 * mix.tokens[1]
    return Asked(f"m{number}", form, lot.choice(list(keys)), leave, body)


async def ask(
    url: str, asked: Asked, secret: str | None, sent: Callable[[str], int] | None = None, seconds: float = 120.0
) -> None:
    """Puts it to the gateway and reads to the end, unless the client leaves before. Connection errors are its fate.

    `sent` tells how many tokens the lines have given for a request; else it is taken by what has come to the client,
    which sees nothing of an answer that is not streamed.
    """
    parser_of = _Read(asked)
    parser = httptools.HttpResponseParser(parser_of)
    reading = asyncio.create_task(_exchange(url, asked, secret, parser, parser_of))
    end = time.monotonic() + seconds
    while not reading.done() and time.monotonic() < end:
        if asked.leave is None:
            await asyncio.wait((reading,), timeout=seconds)
            continue
        if (asked.came if sent is None else sent(asked.name)) >= asked.leave:
            asked.left = True
            break
        await asyncio.wait((reading,), timeout=0.005)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    if asked.left:
        asked.left_at = time.monotonic()
    asked.over = True
    _judge(asked, parser, parser_of)


async def _exchange(url: str, asked: Asked, secret: str | None, parser: Any, got: _Read) -> None:
    target = Target.parse(url)
    writer: asyncio.StreamWriter | None = None
    path = "/v1/chat/completions" if "messages" in asked.body else "/v1/completions"
    data = json.dumps(asked.body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: {asked.name}\r\n"
    head += f"authorization: Bearer {secret}\r\n" if secret else ""
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        while not got.whole and (read := await reader.read(1 << 16)):
            parser.feed_data(read)
    except (OSError, httptools.HttpParserError):
        pass
    finally:
        if writer is not None:
            writer.transport.abort()


def _judge(asked: Asked, parser: Any, got: _Read) -> None:
    with contextlib.suppress(AttributeError):
        asked.status = parser.get_status_code()
    body = bytes(got.body)
    if asked.status != 200 or not asked.body["stream"]:
        asked.ended = got.whole
        if got.whole:
            said = json.loads(body)
            asked.error = (said.get("error") or {}).get("code")
            asked.usage = said.get("usage")
        return
    asked.ended = body.endswith(b"data: [DONE]\n\n")
    for event in body.split(b"\n\n"):
        if b'"usage":{' in event:
            asked.usage = json.loads(event.removeprefix(b"data: "))["usage"]
        elif event.startswith(b'data: {"error"'):
            asked.error = json.loads(event.removeprefix(b"data: "))["error"]["code"]


@dataclass
class Booked:
    """One record in the store."""

    status: str
    key: str | None
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    waste: int = 0
    cost: float = 0.0
    lines: tuple[str, ...] = ()


def records(home: Path) -> dict[str, list[Booked]]:
    """Every record of the store in `home` by the name that its client gave, after the journals were folded."""
    argv = [sys.executable, "-m", "twinline.cli", "usage", "--by", "total", "--json"]
    env = {**os.environ, "TWINLINE_HOME": str(home)}
    totals = json.loads(subprocess.run(argv, env=env, capture_output=True, check=True, timeout=120).stdout)["totals"]
    found: dict[str, Booked] = {}
    names: dict[str, str] = {}
    with contextlib.closing(sqlite3.connect(f"file:{home / 'twinline.db'}?mode=ro", uri=True)) as store:
        for uid, name, status, key in store.execute("SELECT uid, request_id, status, key_id FROM requests"):
            found[uid], names[uid] = Booked(status, key), name
        columns = "uid, prompt_tokens, cached_tokens, completion_tokens, waste_tokens, cost, line"
        for uid, *counts, cost, line in store.execute(f"SELECT {columns} FROM segments ORDER BY uid, position"):
            one = found[uid]
            one.prompt += counts[0]
            one.cached += counts[1]
            one.completion += counts[2]
            one.waste += counts[3]
            one.cost += cost / 1e9
            one.lines += (line,)
    told = sum(row["completion_tokens"] for row in totals)
    assert told == sum(one.completion for one in found.values()), "`twinline usage` says another sum than its records"
    by_name: dict[str, list[Booked]] = defaultdict(list)
    for uid, one in found.items():
        by_name[names[uid]].append(one)
    return by_name


@dataclass
class Owed:
    """What the lines' own tokens come to for one request. `tokens` are due to be metered; the others are not."""

    tokens: int = 0
    sent: int = 0
    behind_stop: int = 0
    behind_cut: int = 0
    after_leaving: int = 0

    def __add__(self, other: Owed) -> Owed:
        return Owed(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other))))


class Judge:
    """Works out from what engines sent, without the gateway, what a tenant is to be counted for."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._tokenizer = Tokenizer.load(FOLDER)
        self.ours = 0
        self._choices: dict[str, dict[str, list[tuple[int, Attempt]]]] = defaultdict(lambda: defaultdict(list))
        for relay in relays:
            for name, attempt in relay.attempts.items():
                if name.startswith(OURS):
                    self.ours += len(attempt.ids)
                    continue
                client, _, choice, *number = name.split("-")
                self._choices[client][choice].append((int(number[0]) if number else 1, attempt))

    def owed(self, one: Asked) -> Owed:
        total = Owed()
        stops = [stop.encode() for stop in one.body.get("stop", ())]
        for attempts in self._choices.get(one.name, {}).values():
            attempts.sort(key=lambda pair: pair[0])
            came = [attempt.until(one.left_at) for _, attempt in attempts]
            total.sent += sum(len(attempt.ids) for _, attempt in attempts)
            total.after_leaving += sum(len(attempt.ids) - count for count, (_, attempt) in zip(came, attempts))
            last = attempts[-1][1]
            tokens = [*last.prefix, *last.ids[: came[-1]]]
            used = self._until_stop(tokens, stops) if stops else len(tokens)
            total.behind_stop += len(tokens) - used
            total.behind_cut += sum(came[:-1]) - len(last.prefix)
            total.tokens += used
        return total

    def _until_stop(self, tokens: list[int], stops: list[bytes]) -> int:
        """The fewest tokens whose whole characters hold a stop string, or all."""
        text = b""
        for count, token in enumerate(tokens, 1):
            text += b"" if token in self._tokenizer.special_ids else self._tokenizer.token_bytes(token)
            if any(stop in text for stop in stops):
                return count
        return len(tokens)


@dataclass
class Verdict:
    """`wrong` must be empty. `generated`: by the engines' own counts, without the house's test requests; `sent`: what
    their connections carried. `owed` is what of it belongs to answers, by the judge; `metered` what the books say.

    The rest is the operator's: `unsent` was made for nobody, `owed` names the other kinds. `plain`: metered and sent,
    of requests that no move, no leaving and no stop string touched.
    """

    wrong: list[str] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    generated: int = 0
    owed: Owed = field(default_factory=Owed)
    metered: int = 0
    prompt: int = 0
    waste: int = 0
    cost: float = 0.0
    moved: int = 0
    plain: tuple[int, int] = (0, 0)

    @property
    def unsent(self) -> int:
        return self.generated - self.owed.sent

    @property
    def apart(self) -> float:
        """Metered against owed."""
        return (self.metered - self.owed.tokens) / max(1, self.owed.tokens)


def compare(
    asked: Sequence[Asked], booked: Mapping[str, list[Booked]], relays: Sequence[Relay], generated: int
) -> Verdict:
    """Every request once; each one's tokens against what the lines sent for it."""
    judge = Judge(relays)
    found = Verdict(generated=generated - judge.ours)
    plain = [0, 0]
    names = {one.name for one in asked}
    found.wrong += [f"{name}: in the books, but nobody asked" for name in booked if name not in names]
    for one in asked:
        mine = booked.get(one.name, [])
        owed = judge.owed(one)
        found.owed += owed
        what = f"{one.name} ({one.form}, status {one.status}{', left' if one.left else ''})"
        found.requests["finished" if one.finished else "left" if one.left else f"{one.status} {one.error}"] += 1
        if len(mine) > 1:
            found.wrong.append(f"{what}: {len(mine)} records")
        if not mine:
            if one.finished:
                found.wrong.append(f"{what}: its client saw its end, and no record")
            elif one.came:
                found.wrong.append(f"{what}: its client saw {one.came} pieces of it, and no record")
            continue
        record = mine[0]
        found.metered += record.completion
        found.prompt += record.prompt
        found.waste += record.waste
        found.cost += record.cost
        found.moved += record.waste > 0  # several lines may be those of several choices
        if one.finished:
            if record.status != "finished":
                found.wrong.append(f"{what}: booked as {record.status}")
            if one.usage is None:
                found.wrong.append(f"{what}: no usage was told")
            elif (record.prompt, record.completion) != (one.usage["prompt_tokens"], one.usage["completion_tokens"]):
                found.wrong.append(f"{what}: booked {record}, told {one.usage}")
            if record.completion != owed.tokens:
                found.wrong.append(f"{what}: metered {record.completion}, owed {owed}")
            if owed.behind_stop == owed.behind_cut == 0:
                plain[0] += record.completion
                plain[1] += owed.sent - owed.after_leaving
        # A token that ends the reasoning may bring two pieces, once in each choice.
        if one.left and record.completion < one.came - one.body.get("n", 1):
            found.wrong.append(f"{what}: metered {record.completion}, its client saw {one.came} pieces")
        if record.completion > owed.sent:
            found.wrong.append(f"{what}: metered {record.completion}, the lines sent {owed.sent}")
        if record.waste and len(record.lines) < 2:
            found.wrong.append(f"{what}: waste without a move")
    found.plain = (plain[0], plain[1])
    return found
