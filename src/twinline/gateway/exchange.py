"""One HTTP exchange: read a bounded body, answer with JSON or with server-sent events, notice who left.

Owns the wire towards the client. Must not know models, tokens or fields. What is sent comes from callbacks, a token at
a time, and costs no task; while the client does not read, nothing is sent and the answer is told to pause.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from twinline.gateway.errors import OPENAI, ApiError, Wording, bad_request
from twinline.gateway.heads import CONNECTION, CYCLE, Connection
from twinline.gateway.reasons import why_refused
from twinline.gateway.sending import CHUNKED, LAST_CHUNK, body_of, head, send
from twinline.lines.turn import Turn

T = TypeVar("T")

MAX_BODY_BYTES = 16 << 20  # a prompt of a million tokens, with room
MAX_HELD_BYTES = 256 << 20  # of bodies, over all connections
SMALL_BODY_BYTES = 64 << 10  # such a body is never refused for the sake of others
MAX_VALUES = 2 << 20  # in one body; decoded, a value of two bytes becomes a hundred
_PATH_IN_MESSAGE = re.compile(r" - at `(key in )?\$\.?(.*?)`$")
_EVENTS = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\n"  # nginx would hold events back
)
CLIENT_LEFT = 499  # nginx's word for it; only metrics and the log see it
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_prefix = secrets.token_hex(11)
_numbers = count(1)


class Life(Protocol):
    """What an exchange without a task ends in."""

    def over(self) -> None:
        """The last byte was handed over, or the client left. Once."""

    def cut_off(self) -> None:
        """The server ends and waits no longer: the client should be told."""


class Source(Protocol):
    """What makes the answer."""

    def left(self) -> None:
        """The client is gone."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@dataclass(slots=True)
class Held:
    """Bytes of bodies that did not come in one piece, over all exchanges that are under way, and how many may be."""

    limit: int = MAX_HELD_BYTES
    bytes: int = 0


class Exchange:
    """One request and its answer. `status` is what was sent, or None so far; `cause` is the failure that was told, and
    `reason` the word for it.

    `request_id` is the client's `x-request-id` if that is a token of sane length, else ours; every answer carries it.
    `model` and `lines` are what the request is about, in the log's words. `body_bytes` is the size of the body once it
    was read. `done`: the last byte was handed over or the client left, and the work that is kept in `afterwards` comes
    soon; what is sent goes out at the end of its `turn`.
    """

    __slots__ = (
        "_chunked", "_connection", "_cycle", "_headers", "_held", "_keep", "_kept", "_life", "_receive", "_source",
        "_told", "_wait", "afterwards", "body_bytes", "cause", "done", "gone", "lines", "model", "reason", "request_id",
        "status", "streaming", "tenant", "turn", "wording",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        wording: Wording = OPENAI,
        headers: dict[bytes, bytes] | None = None,
    ) -> None:
        """`headers`: as `headers_of` gives them, by who has them already."""
        self._receive = receive
        self._headers = headers_of(scope) if headers is None else headers
        self._connection: Connection = scope[CONNECTION]
        # Taken out, for it holds the scope: what was answered is freed at once, not by the collector.
        self._cycle: RequestResponseCycle = scope.pop(CYCLE)
        self._connection.watcher = self
        self._chunked = scope["http_version"] != "1.0"  # there an answer ends with its connection (RFC 9112, 6.1)
        self.turn: Turn = self._connection.turn
        self._source: Source | None = None
        self._life: Life | None = None
        self._wait: asyncio.Future[None] | None = None
        self._held: list[tuple[bytes, bool]] = []
        self._keep: Held | None = None
        self._kept = 0
        self._told = b""
        self.wording = wording
        self.status: int | None = None
        self.streaming = False
        self.gone = False
        given = self.header("x-request-id")
        # Ours are unique by a random prefix and a number, not secret.
        self.request_id = given if given and _REQUEST_ID.fullmatch(given) else f"{_prefix}{next(_numbers):010x}"
        self.model = self.lines = "-"
        self.tenant = "-"
        self.cause: str | None = None
        self.reason: str | None = None
        self.body_bytes = 0
        self.done = False
        self.afterwards: list[Callable[[], None]] = []

    def header(self, name: str) -> str | None:
        return header_in(self._headers, name)

    def hand_back(self, scope: Scope) -> None:
        """As if it had not been: another exchange will take the request."""
        scope[CYCLE] = self._cycle
        self._connection.watcher = None

    async def body(self, limit: int, held: Held | None = None) -> bytes | None:
        """The whole body, or None if the client left. Raises ApiError 413 above `limit` bytes, 503 when those that are
        `held` leave no room; then `release` it when the exchange is over.

        A body that cannot be taken is read to four times the limit and dropped, so that the client, which is still
        writing, gets to read why.
        """
        here = body_of(self._cycle)
        if here is not None and len(here) <= limit:
            self.body_bytes = len(here)
            return here
        message: Message = {"type": "http.request", "body": here} if here is not None else await self._receive()
        if message["type"] == "http.disconnect":
            return None
        part: bytes = message.get("body", b"")
        if not message.get("more_body", False) and len(part) <= limit:
            self.body_bytes = len(part)
            return part
        self._keep = held = held or Held()
        self._hold(len(part))
        parts = [part]
        size = len(part)
        room = True
        while message.get("more_body", False) and size <= 4 * limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= limit and room:
                parts.append(part)
                self._hold(len(part))
                if held.bytes > held.limit and size > SMALL_BODY_BYTES:
                    room = False
            if parts and (size > limit or not room):
                parts.clear()
                self.release()
        if size > limit:
            raise _body_error(413, f"The body is longer than {limit} bytes.", "body_too_large")
        if not room:
            raise _too_much(held.limit)
        self.body_bytes = size
        return b"".join(parts)

    def _hold(self, size: int) -> None:
        assert self._keep is not None
        self._keep.bytes += size
        self._kept += size

    def release(self) -> None:
        """The body is no longer held."""
        if self._keep is not None:
            self._keep.bytes -= self._kept
            self._kept = 0

    def answer_by(self, source: Source) -> None:
        """`source` makes the answer."""
        if self.gone:
            source.left()
        elif not self.done:
            self._source = source

    def without_task(self, life: Life) -> None:
        """Nobody waits until it is `answered`: `life` is told."""
        self._life = life

    async def answered(self) -> None:
        """Until the answer is handed over or nobody is there to take it."""
        if not self.done:
            self._wait = self._connection.loop.create_future()  # `get_running_loop` is a system call
            await self._wait

    # What the connection calls.

    def left(self) -> None:
        self.gone = True
        self._held.clear()
        if self._source is not None and not self.done:
            self._source.left()
        self._finished()

    def full(self) -> None:
        if self._source is not None:
            self._source.pause()

    def free(self) -> None:
        held, self._held = self._held, []
        for data, last in held:
            self._out(data, last)
        if self._source is not None and not self.done:
            self._source.resume()

    # What makes the answer calls.

    def json(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        lines = b"content-type: application/json\r\ncontent-length: %d\r\n%b" % (len(body), self._id_line())
        self._out(head(self._cycle, status, lines, headers) + body, True)

    def events(self, data: bytes, *, last: bool = False) -> None:
        """Sends finished events; the first call also begins the answer, `last` ends it."""
        self.turn.events += 1
        if data and self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self.streaming and not (last or self._held or self.gone or self._connection.full):
            if not self._cycle.disconnected:  # nearly every token
                self._cycle.transport.write(data)
            return
        if last and self._chunked:
            data += LAST_CHUNK
        if not self.streaming:
            self.streaming = True
            self.status = 200
            lines = _EVENTS + self._id_line() + (CHUNKED if self._chunked else b"")
            data = head(self._cycle, 200, lines) + data
        self._out(data, last)

    def error(self, error: ApiError) -> bool:
        """An error answer or, once events have been sent, an in-band error event without `[DONE]`. False: it comes too
        late, because the answer or another error was given, or the client left."""
        late = self.cause is not None or self.done
        if late or (self.status is not None and not self.streaming):
            return False
        self.cause, self.reason = error.message, why_refused(error)
        if not self.streaming:
            self.json(self.wording.body(error, self.request_id), error.status, error.headers)
            return True
        self.status = error.status
        self.events(self.wording.event(error, self.request_id), last=True)
        return True

    def stop(self) -> None:
        """Nobody waits for the end any more; what is held goes out all the same if the client reads it."""
        self._end()

    def cut_off(self) -> None:
        """The server ends: one with a task is told by that."""
        if self._life is not None:
            self._life.cut_off()

    def _end(self) -> None:
        if self.done:
            return
        self.done = True
        afterwards, self.afterwards = self.afterwards, []  # they know the exchange
        for work in afterwards:
            self._connection.loop.call_soon(work)
        if self._wait is not None and not self._wait.done():
            self._wait.set_result(None)
        life, self._life = self._life, None
        if life is not None:
            life.over()

    def warn(self, ignored: Sequence[str]) -> None:
        """The answer's head will name the fields that have no effect (the form is RFC 7234's, section 5.5)."""
        if ignored:
            self._told += b'warning: 299 twinline "ignored: %b"\r\n' % ", ".join(ignored).encode()

    def tell(self, name: str, value: str) -> None:
        """The answer's head will have that line, too; both are ours."""
        self._told += f"{name}: {value}\r\n".encode("ascii")

    @property
    def told(self) -> bytes:
        """Head lines beside those that every answer has."""
        return self._told

    def head_lines(self, told: bytes) -> None:
        """The answer's head will have those that another's had."""
        self._told += told

    def _id_line(self) -> bytes:
        return self.wording.head(self.request_id) + self._told

    def _out(self, data: bytes, last: bool) -> None:
        if self.gone:
            return
        if self._held or self._connection.full:
            self._held.append((data, last))
            return
        send(self._cycle, data, last)
        if last:
            self._finished()

    def _finished(self) -> None:
        if self._connection.watcher is self:
            self._connection.watcher = None
        self._source = None
        self._end()


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """By their names in lower case; of two of a name the first counts."""
    return dict(reversed(scope["headers"]))


def header_in(headers: Mapping[bytes, bytes], name: str) -> str | None:
    value = headers.get(name.encode())
    return None if value is None else value.decode("latin-1")


def _body_error(status: int, message: str, code: str) -> ApiError:
    """The connection cannot be used again: the rest of the body would be read as the next request."""
    return ApiError(status, message, code=code, headers={"connection": "close"})


def _too_much(limit: int) -> ApiError:
    headers = {"retry-after": "1", "connection": "close"}
    told = f"Requests under way hold more than {limit} bytes of bodies; try again when some have ended."
    return ApiError(503, told, code="too_many_bytes", headers=headers)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body as the decoder's type. Raises ApiError 400 that names the field at fault when there is one."""
    if len(body) > MAX_VALUES and body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise ApiError(413, f"The body holds more than {MAX_VALUES} values.", code="body_too_large")
    try:
        body.decode("utf-8")  # the decoder does not look inside fields it skips
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    except msgspec.ValidationError as error:
        text = str(error)
        found = _PATH_IN_MESSAGE.search(text)
        missing = re.search(r"missing required field `(\w+)`", text)
        param = found.group(2) if found else ""
        if missing:
            param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        raise bad_request(f"{text}.", param or None) from error
    except msgspec.DecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise bad_request("The body is nested too deeply.") from error
