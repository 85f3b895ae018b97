"""One line as somebody to ask: calls that answer by callbacks, and plain questions for those who watch it.

Owns the life of one request at a line: sent, answered event by event, ended or broken. Must not know what is done with
an answer, nor which dialect is spoken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from twinline.lines.drivers.driver import Dialect
from twinline.lines.drivers.native import Protocol as LineProtocol
from twinline.lines.drivers.native import read_chunk, read_plain
from twinline.lines.events import COMPILED, delta_of, read_answer, read_chunks
from twinline.lines.gathered import Queue, Whole
from twinline.lines.http import Connection, ConnectionBroken, Pool, Target
from twinline.lines.protocol import LineBroken, LineError, LineRefused, TextSource, TokenRequest
from twinline.lines.refusals import refusal_of
from twinline.lines.traced import traced
from twinline.lines.wire import Delta, EventLines, merge

if TYPE_CHECKING:
    from twinline.lines._events import Read

log = logging.getLogger(__name__)

DEADLINE_GRACE_SECONDS = 2.0  # how much longer than the request's own deadline a silent line is waited for
AFTER_FINISH_SECONDS = 2.0  # how long the usage chunk may take once the finish reason is here
QUESTION_SECONDS = 10.0
LONGEST_EVENT_BYTES = 16 << 20  # the prompt's own token ids may be in it
LONGEST_SCORED_EVENT_BYTES = 256 << 20  # with the prompt's log-probabilities
LONGEST_REFUSAL_BYTES = 1 << 20
FEW_EVENTS = 2  # up to which events are read one by one
_DONE = b"[DONE]"


class Sink(Protocol):
    """Who made a call. `finished` or `failed` comes once, at the end; nothing comes after `cancel`.

    One may also have `tokens(list[int]) -> bool`, which is asked first where token ids came and nothing else.
    """

    def delta(self, delta: Delta) -> None: ...

    def finished(self) -> None:
        """A finish reason came, and all that belongs after it, or it was waited for in vain."""

    def failed(self, error: LineError) -> None:
        """LineRefused: nothing was generated. LineBroken: the answer broke off before a finish reason."""


class Call:
    """One request under way at a line. It is an `http.Answer`.

    `last` is when a token or the end of a wait last came (monotonic seconds): comments and empty events do not count.
    """

    __slots__ = (
        "_alone", "_bytes", "_client", "_connection", "_deadline", "_events", "_finish_timer", "_finished", "_headers",
        "_longest", "_opens", "_over", "_paused", "_plain_events", "_reader", "_refused", "_sink", "_status", "_task",
        "_usage_after", "last", "plain", "started", "tokens",
    )  # fmt: skip

    def __init__(self, client: LineClient, request: TokenRequest, text: TextSource | None, sink: Sink) -> None:
        """Raises ValueError when the dialect cannot say `request`."""
        self._client = client
        self._sink = sink
        self._alone: Callable[[list[int]], bool] | None = getattr(sink, "tokens", None)  # for tokens that come so
        path, body = client.dialect.encode(request, text)
        self._bytes = traced(client.pool.request("POST", path, body), sink)
        self._reader = client.dialect.reader(request)
        self._usage_after = client.dialect.usage_after_finish
        self._events = EventLines(client.dialect.framing == "sse")
        self.plain = self._plain_events = COMPILED and self._reader is read_chunk
        scored = request.prompt_logprobs is not None
        self._longest = LONGEST_SCORED_EVENT_BYTES if scored else LONGEST_EVENT_BYTES
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._finish_timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        if request.timeout_s is not None:
            seconds = request.timeout_s + DEADLINE_GRACE_SECONDS
            silence = LineBroken("the line stayed silent past the request's deadline", "deadline")
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._fail, silence)
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._refused: list[bytes] | None = None
        self._opens = client.dialect.framing == "sse"  # its first bytes tell whether it is events
        self._finished = self._over = self._paused = False
        self.started = self.last = time.monotonic()
        self.tokens = 0

    def start(self) -> None:
        connection = self._client.pool.idle()
        if connection is None:
            self._task = asyncio.get_running_loop().create_task(self._connect())
        else:
            self._connection = connection
            connection.ask(self._bytes, self)

    async def _connect(self) -> None:
        try:
            connection = await self._client.pool.connect()
        except ConnectionBroken as error:
            self._fail(LineRefused(503, str(error), "line_unreachable"))
            return
        if self._over:
            connection.close()
            return
        self._connection = connection
        connection.ask(self._bytes, self)
        if self._paused:
            connection.pause()

    def cancel(self) -> None:
        """Aborts the request at the line; the sink hears nothing more."""
        if self._over:
            return
        self._over = True
        self._release()

    def _release(self) -> None:
        self._stop_timers()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
        if self._task is not None and not self._task.done() and self._task is not _current_task():
            self._task.cancel()

    def pause(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        self.last = time.monotonic()  # until now it was silent because it was told to be
        if self._connection is not None:
            self._connection.resume()

    def _ended(self) -> bool:
        return self._over

    def give_up(self, error: LineBroken) -> None:
        """Breaks the call from outside, as a silence does."""
        self._fail(error)

    def _fail(self, error: LineError) -> None:
        if self._over:
            return
        self._over = True
        self._release()
        if self._finished:
            self._sink.finished()
        else:
            self._sink.failed(error)

    def _finish(self) -> None:
        if self._over:
            return
        self._over = True
        self._stop_timers()
        self._sink.finished()

    def _stop_timers(self) -> None:
        if self._finish_timer is not None:
            self._finish_timer.cancel()
        if self._deadline is not None:
            self._deadline.cancel()

    # What the connection calls.

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._status, self._headers = status, headers
        if status != 200:
            self._refused = []
            self.plain = self._plain_events = False

    def data(self, data: bytes) -> None:
        if self._over:
            return
        if self._opens:
            self._opens = False
            if self._refused is None and data.lstrip().startswith(b"{"):
                self._refused = []  # an object where events should be: nearly always an error
                self.plain = self._plain_events = False
        if self._refused is not None:
            self._refused.append(data)
            if sum(map(len, self._refused)) > LONGEST_REFUSAL_BYTES:
                self._fail(refusal_of(self._status, b"".join(self._refused), self._headers))
            return
        merged, failure, done = self._parsed(data)
        self.plain = self._plain_events and not self._events.pending
        if self._events.pending > self._longest:
            failure = LineBroken(f"an event longer than {self._longest >> 20} MiB")
        self._came(merged, failure, done)

    def _parsed(self, data: bytes) -> tuple[Delta | None, LineError | None, bool]:
        """What the events in it come to, what is wrong with the first that is, and whether `[DONE]` was there."""
        merged: Delta | None = None
        payloads = self._events.feed(data)
        if len(payloads) > FEW_EVENTS and self._reader is read_chunk:
            merged, payloads = read_plain(payloads)
        for payload in payloads:
            if payload == _DONE:
                return merged, None, True
            try:
                delta = self._reader(payload)
            except LineError as error:
                return merged, error, False
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
                return merged, LineBroken(f"an event that is not the protocol's: {error}"), False
            if delta is not None:
                merged = delta if merged is None else merge(merged, delta)
        return merged, None, False

    read_answer = staticmethod(read_answer)
    read_chunks = staticmethod(read_chunks)

    def take(self, read: Read) -> None:
        if self._over:
            return
        tokens, _, finish, stop, usage, done, _ = read
        if tokens and finish is None and stop is None and usage is None and not done and self._alone is not None:
            try:
                taken = self._alone(tokens)
            except Exception as error:
                self._unusable(error)
                return
            if taken:
                self.last = time.monotonic()
                self.tokens += len(tokens)
                return
        self._came(delta_of(read), None, done)

    def _came(self, merged: Delta | None, failure: LineError | None, done: bool) -> None:
        """Goes on with a network read: what it said, then what is wrong with it, if anything is."""
        if merged is not None:
            text = merged.text or merged.reasoning or merged.tool_calls
            if merged.tokens or text or merged.prompt_logprobs is not None:
                self.last = time.monotonic()
                self.tokens += len(merged.tokens)
            try:
                self._sink.delta(merged)
            except Exception as error:
                self._unusable(error)
                return
            if merged.finish_reason is not None:
                self._finished = True
            if self._ended():
                return
        if failure is not None:
            self._fail(failure)
        elif done or (self._finished and not self._usage_after):
            self._well_done()
        elif self._finished and self._finish_timer is None:
            self._finish_timer = asyncio.get_running_loop().call_later(AFTER_FINISH_SECONDS, self._usage_missing)

    def _unusable(self, error: Exception) -> None:
        """Such as a token id that no vocabulary has: the answer must not hang or end well."""
        log.exception("what the line at %s sent cannot be used", self._client.target)
        self._fail(LineBroken(f"its answer cannot be used: {error or type(error).__name__}"))

    def _well_done(self) -> None:
        """`[DONE]` or the last event is here. What is left is only the end of the body, which the connection reads."""
        if not self._finished:
            self._fail(LineBroken("the stream ended without a finish reason"))
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            if getattr(self._reader, "leftover", False):  # the engine would go on past the end that we saw
                connection.close()
            else:
                connection.leave()
        self._finish()

    def _usage_missing(self) -> None:
        self._fail(LineBroken("no usage chunk came"))

    def complete(self) -> None:
        self._connection = None
        if self._over:
            return
        if self._refused is not None:
            self._fail(refusal_of(self._status, b"".join(self._refused), self._headers))
        elif self._finished:
            self._finish()
        else:
            self._fail(LineBroken("the stream ended without a finish reason"))

    def broken(self, error: ConnectionBroken) -> None:
        self._connection = None
        if self._over:
            return
        if error.unused:
            self._task = asyncio.get_running_loop().create_task(self._connect())
        elif self._refused is not None:
            self._fail(refusal_of(self._status, b"".join(self._refused), self._headers))
        else:
            self._fail(LineBroken(str(error), error.code))


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class LineClient:
    """Speaks to the line at `url` (`http://host:port` or `unix:///path`), in the line protocol unless told another."""

    def __init__(self, url: str, dialect: Dialect | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.target = Target.parse(url)
        self.pool = Pool(self.target, headers)
        self.dialect: Dialect = dialect or LineProtocol()

    def call(self, request: TokenRequest, text: TextSource | None, sink: Sink) -> Call:
        """Starts a request. Raises ValueError when the dialect cannot say it; every other fault goes to `sink`."""
        call = Call(self, request, text, sink)
        call.start()
        return call

    async def stream(self, request: TokenRequest, text: TextSource | None = None) -> AsyncGenerator[Delta, None]:
        """The same for those who wait: the answer as it arrives, one Delta per network read. Closing it aborts.

        Raises LineRefused before the first Delta, or LineBroken at any time before a finish reason was given.
        """
        queue = Queue()
        call = self.call(request, text, queue)
        try:
            while True:
                item = await queue.items.get()
                if item is None:
                    return
                if isinstance(item, LineError):
                    raise item
                yield item
        finally:
            call.cancel()

    async def ask(self, method: str, path: str, body: bytes = b"", seconds: float | None = None) -> tuple[int, bytes]:
        """Status and body of a plain question. Raises LineRefused if nobody answers, LineBroken if it breaks off."""
        seconds = QUESTION_SECONDS if seconds is None else seconds
        try:
            connection = self.pool.idle() or await self.pool.connect()
        except ConnectionBroken as error:
            raise LineRefused(503, str(error), "line_unreachable") from error
        answer = Whole()
        connection.ask(self.pool.request(method, path, body), answer)
        try:
            async with asyncio.timeout(seconds):
                return await answer.result
        except TimeoutError:
            raise LineBroken(f"no answer to {path} within {seconds:g} s") from None
        except ConnectionBroken as error:
            if error.unused:
                return await self.ask(method, path, body, seconds)
            raise LineBroken(str(error)) from error
        finally:
            if not answer.ended:
                connection.close()

    async def models(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`. Raises LineRefused or LineBroken."""
        status, body = await self.ask("GET", "/v1/models")
        if status != 200:
            raise LineRefused(status, body[:500].decode("utf-8", "replace"))
        try:
            listed: list[dict[str, Any]] = msgspec.json.decode(body)["data"]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
            raise LineBroken(f"/v1/models is not OpenAI's list: {error}") from error
        return listed

    async def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the line can answer, and what it says of itself. Raises LineRefused or LineBroken."""
        status, body = await self.ask("GET", "/health")
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = {}
        return status == 200, said if isinstance(said, dict) else {}

    async def metrics_text(self) -> str:
        """The line's Prometheus text. Raises LineRefused or LineBroken."""
        status, body = await self.ask("GET", "/metrics")
        if status != 200:
            raise LineRefused(status, body[:500].decode("utf-8", "replace"))
        return body.decode("utf-8", "replace")

    def close(self) -> None:
        self.pool.close()
