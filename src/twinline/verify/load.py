"""Offers load to an OpenAI endpoint and times every answer, in a closed or an open loop.

Owns arrivals, streaming and the clock. Knows neither how prompts are made nor how results are summed up or printed.

In a closed loop a fixed number of clients each wait for one answer before asking again. In an open loop requests fall
due at random moments whatever the server does, and an answer's time counts from the moment it was *due*: a server that
stalls is charged for every request that had to wait, sent or not (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import aiohttp

from twinline.verify.openai_error import error_text, message_of

Body = dict[str, Any]
Endpoint = Literal["completions", "chat"]
PATHS: dict[Endpoint, str] = {"completions": "/completions", "chat": "/chat/completions"}
INTERRUPTED = "interrupted"  # the error of what had not ended by then
LONGEST_LINE = 1 << 23  # bytes; a chunk that repeats a long prompt's token ids is one line
RETRY_AFTER = 0.25  # seconds between attempts to reach a server that is still starting


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: `base` ends in `/v1`."""

    base: str
    endpoint: Endpoint = "completions"
    key: str | None = None

    @property
    def url(self) -> str:
        return self.base + PATHS[self.endpoint]


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` clients, each asking again as soon as it is answered."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class Open:
    """Poisson arrivals: `rate` requests a second on average, the same moments for the same `seed`."""

    rate: float
    seed: int = 0

    def due(self, count: int) -> list[float]:
        """Seconds from the start at which each of `count` requests falls due."""
        rng, now = random.Random(self.seed), 0.0
        moments = []
        for _ in range(count):
            now += rng.expovariate(self.rate)
            moments.append(now)
        return moments


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request went. Times are seconds since the load began; `chunks` are when pieces of the answer arrived.

    `error` is a kind (`http 429`, `connect`, `timeout`, `cut off`, `stream error`, ...) and None for a whole answer.
    `counted` tells where the token counts come from: the server's usage, or the pieces seen on the wire.
    """

    due: float
    sent: float
    ended: float
    chunks: tuple[float, ...] = ()
    input_tokens: int | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    counted: Literal["usage", "chunks"] = "chunks"
    error: str | None = None
    detail: str = ""


class Listener:
    """Reads one streamed answer, event by event."""

    def __init__(self) -> None:
        self.chunks: list[float] = []
        self.tokens = 0
        self.usage: dict[str, Any] | None = None
        self.finish: str | None = None
        self.done = False
        self.failure: tuple[str, str] | None = None

    def hear(self, line: bytes, now: float) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if event.get("error"):
            self.failure = ("stream error", message_of(event))
            return
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            ids, piece = choice.get("token_ids") or (), choice.get("delta") or choice
            if ids or any(
                piece.get(name) for name in ("text", "content", "reasoning_content", "reasoning", "tool_calls")
            ):
                self.chunks.append(now)
                self.tokens += len(ids) or 1
            self.finish = choice.get("finish_reason") or self.finish

    def verdict(self) -> tuple[str | None, str]:
        """The kind of error and its detail, once the stream has ended."""
        if self.failure:
            return self.failure
        if self.finish in ("abort", "deadline", "error"):
            return f"finish {self.finish}", "the server gave up on the answer"
        if not self.done and not self.finish:
            return "cut off", "the stream ended without a finish reason"
        return None, ""

    def fill(self, answer: Answer) -> Answer:
        """`answer` with what was heard. An answer with no visible piece has its first token when it ends."""
        error, detail = self.verdict()
        usage = self.usage or {}
        details = usage.get("prompt_tokens_details") or {}
        made = usage.get("completion_tokens")
        return replace(
            answer,
            chunks=tuple(self.chunks) or ((answer.ended,) if error is None else ()),
            input_tokens=usage.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=self.tokens if made is None else made,
            counted="chunks" if made is None else "usage",
            error=error,
            detail=detail,
        )


class Load:
    """One run: a session, a clock that starts at zero, and a deadline after which nothing is sent or awaited."""

    def __init__(self, target: Target, session: aiohttp.ClientSession, timeout: float):
        self.target, self.session = target, session
        self.loop = asyncio.get_running_loop()
        self.start = self.loop.time()
        self.timeout = timeout
        self._over = "timeout", f"no end after the run's {timeout:g} seconds"
        self._limits: set[asyncio.Timeout] = set()
        self._arrivals: set[asyncio.Future[None]] = set()

    def now(self) -> float:
        return self.loop.time() - self.start

    def interrupt(self) -> None:
        """What has not ended has failed, and nothing more is sent."""
        self.timeout = min(self.timeout, self.now())
        self._over = INTERRUPTED, "the run was interrupted"
        for limit in self._limits:
            limit.reschedule(self.start + self.timeout)
        for due in self._arrivals:
            _settle(due)

    async def ask(self, body: Body, due: float | None = None) -> Answer:
        """Sends one request and listens to its end; never raises for what the server does."""
        sent = self.now()
        due = sent if due is None else due
        if sent >= self.timeout:
            kind, why = self._over
            if kind != INTERRUPTED:
                kind, why = "not sent", "the time limit came first"
            return Answer(due, sent, sent, error=kind, detail=why)
        listener = Listener()
        error: str | None
        limit = asyncio.timeout_at(self.start + self.timeout)
        self._limits.add(limit)
        try:
            async with limit:
                error, detail = await self._exchange(body, listener)
        except TimeoutError:
            error, detail = self._over
        except aiohttp.ClientConnectorError as exc:
            error, detail = "connect", str(exc)
        except (aiohttp.ClientError, OSError) as exc:
            error, detail = "cut off", str(exc) or type(exc).__name__
        except (ValueError, AttributeError, TypeError) as exc:
            error, detail = "bad stream", f"not OpenAI's stream: {exc}"
        finally:
            self._limits.discard(limit)
        answer = listener.fill(Answer(due, sent, self.now()))
        return replace(answer, error=error, detail=detail) if error else answer

    async def _exchange(self, body: Body, listener: Listener) -> tuple[str | None, str]:
        async with self.session.post(self.target.url, json=body) as response:
            if response.status != 200:
                return f"http {response.status}", error_text(await response.read())
            async for line in response.content:
                listener.hear(line, self.now())
                if listener.done:
                    break
        return None, ""

    async def closed(self, bodies: Sequence[Body], concurrency: int) -> list[Answer]:
        """Answers in the order of their ends."""
        answers: list[Answer] = []
        waiting = iter(bodies)

        async def client(queue: Iterator[Body]) -> None:
            for body in queue:
                answers.append(await self.ask(body))

        await asyncio.gather(*(client(waiting) for _ in range(min(concurrency, len(bodies)))))
        return answers

    async def _until(self, moment: float) -> None:
        """Or until it is interrupted."""
        moment = min(moment, self.timeout)
        if self.now() < moment:
            due = self.loop.create_future()
            handle = self.loop.call_at(self.start + moment, _settle, due)
            self._arrivals.add(due)
            await due
            self._arrivals.discard(due)
            handle.cancel()

    async def open(self, bodies: Sequence[Body], due: Sequence[float]) -> list[Answer]:
        """Answers in the order of their requests."""

        async def arrive(body: Body, moment: float) -> Answer:
            await self._until(moment)
            return await self.ask(body, moment)

        return await asyncio.gather(*(arrive(body, moment) for body, moment in zip(bodies, due, strict=True)))


def _settle(due: asyncio.Future[None]) -> None:
    if not due.done():
        due.set_result(None)


def open_session(target: Target) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Authorization": f"Bearer {target.key}"} if target.key else None,
        read_bufsize=LONGEST_LINE,
    )


async def offer(target: Target, bodies: Sequence[Body], shape: Closed | Open, timeout: float) -> list[Answer]:
    """Sends every body, streaming; at most `timeout` seconds in all. One answer for each, failed ones included. The
    first SIGINT ends the run early: what has not ended by then is `INTERRUPTED`."""
    async with open_session(target) as session:
        load = Load(target, session, timeout)
        with _on_interrupt(load):
            if isinstance(shape, Closed):
                return await load.closed(bodies, shape.concurrency)
            return await load.open(bodies, shape.due(len(bodies)))


@contextlib.contextmanager
def _on_interrupt(load: Load) -> Iterator[None]:
    def interrupt() -> None:
        load.loop.remove_signal_handler(signal.SIGINT)  # the second one means now
        load.interrupt()

    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # signals are the main thread's
        load.loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            load.loop.remove_signal_handler(signal.SIGINT)


async def warm_up(target: Target, bodies: Sequence[Body], timeout: float, patience: float = 0) -> Answer | None:
    """Sends the bodies one after another and returns the first failure, which ends it; None when all went well.

    For `patience` seconds a server that refuses connections or has no line up yet (503) is asked again.
    """
    async with open_session(target) as session:
        load = Load(target, session, timeout + patience)
        for body in bodies:
            answer = await load.ask(body)
            while answer.error in ("connect", "http 503") and load.now() < patience:
                await asyncio.sleep(RETRY_AFTER)
                answer = await load.ask(body)
            if answer.error:
                return answer
    return None
