"""HTTP/1.1 towards a line: connections that are kept and used again, one exchange at a time on each.

Owns bytes on a socket. Must not know what a token is. Written on `asyncio.Protocol` and callbacks: a read costs one
wake-up here, whatever the number of events in it, and no task. Closing a connection under way aborts its request at the
line; one whose answer has ended goes back to its pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools

from twinline import __version__
from twinline.lines.turn import Outlet, Turn

CONNECT_SECONDS = 5.0
LEFT_SECONDS = 2.0  # how long the end of a body may take that nobody waits for
MOST_IDLE = 256  # connections that a pool keeps
IDLE_SECONDS = 60.0  # and how long: what forwards them may forget one in minutes, and then drops all without a word
LONGEST_HEAD_BYTES = 256 << 10  # of an answer
MOST_HEADERS = 1000  # of an answer, its trailers among them
LAST_CHUNK = b"0\r\n\r\n"


class ConnectionBroken(Exception):
    """The exchange cannot go on: the peer closed early, sent broken HTTP, or was given up.

    `unused`: not a byte of an answer came, on a connection that had served before: the peer may have closed it while
    it was idle, so asking again on a fresh one is right.
    """

    def __init__(self, reason: str, code: str | None = None, *, unused: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.unused = unused


@dataclass(frozen=True, slots=True)
class Target:
    """Where a line listens: host and port, or a Unix socket. `path` goes before every request's path."""

    host: str
    port: int = 80
    path: str = ""
    unix: str | None = None
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Target:
        """From `http://host:port/path`, `https://...` or `unix:///path/to/socket`. Raises ValueError for others."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path:
            return cls(host="localhost", unix=parts.path)
        if parts.username or parts.password:
            raise ValueError("a name or password in an address is a secret in a file: give the key by api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a line's address must be http://host:port or unix:///path, not {url!r}")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls=tls)

    def __str__(self) -> str:
        if self.unix:
            return f"unix://{self.unix}"
        return f"{'https' if self.tls else 'http'}://{self._host}:{self.port}"  # some keep a secret in the path

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def authority(self) -> str:
        """As HTTP's host header has it: some servers compare it with their name, which has no usual port."""
        return self._host if self.port == (443 if self.tls else 80) else f"{self._host}:{self.port}"

    @classmethod
    def shown(cls, url: str) -> str:
        """As people may see it: where it has a path, dots stand for it."""
        target = cls.parse(url)
        return f"{target}/..." if target.path else str(target)


def cannot_read(data: bytes, /) -> tuple[Any, ...] | None:
    """Of an answer that is never plain."""
    return None


class Answer(Protocol):
    """Who asked. Called from the event loop, in this order; `broken` or `complete` is the last.

    `plain`: the next bytes may be tried as they come from the socket, without a parser of HTTP. `read_answer` then gets
    what may be a whole answer with its head, `read_chunks` what may be whole chunks of a body. They return None for
    bytes that they do not know, or a tuple for `take`, whose last item is whether the end of the body was there.
    """

    plain: bool

    def read_answer(self, data: bytes, /) -> tuple[Any, ...] | None: ...

    def read_chunks(self, data: bytes, /) -> tuple[Any, ...] | None: ...

    def take(self, read: Any) -> None:
        """Goes on with what was read."""

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The answer's status and headers; names are in lower case."""

    def data(self, data: bytes) -> None:
        """Some of the body, never empty."""

    def complete(self) -> None: ...

    def broken(self, error: ConnectionBroken) -> None: ...


class _Nobody:
    """Whom the rest of an answer goes to when its asker needs no more of it."""

    plain = False
    read_answer = read_chunks = staticmethod(cannot_read)

    def take(self, read: object) -> None: ...

    def head(self, status: int, headers: dict[bytes, bytes]) -> None: ...

    def data(self, data: bytes) -> None: ...

    def complete(self) -> None: ...

    def broken(self, error: ConnectionBroken) -> None: ...


_NOBODY = _Nobody()


class Connection(asyncio.Protocol):
    """One connection. Between answers it lies in its pool."""

    __slots__ = (
        "_answer", "_between", "_body", "_chunk_over", "_closed", "_complete", "_head_bytes", "_headed", "_headers",
        "_keep", "_parser", "_paused", "_pool", "_timer", "_transport", "idle_since", "served",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Outlet | None = None
        self._answer: Answer | None = None
        self._body: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._headed = False
        self._head_bytes = 0  # that came without any of the body among them
        self._complete = False
        self._between = True  # the parser waits for an answer, or for the next chunk of one
        self._chunk_over = False
        self._keep = False
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._closed = False
        self.served = 0  # answers that ended well
        self.idle_since = 0.0  # monotonic seconds, where it lies in its pool

    # What the caller does.

    def ask(self, request: bytes, answer: Answer) -> None:
        """Sends a whole request; its answer goes to `answer`."""
        assert self._transport is not None and self._answer is None
        self._answer = answer
        self._headed = self._complete = self._chunk_over = False
        self._between = True
        self._head_bytes = 0
        self._transport.write(request)

    def pause(self) -> None:
        """Lets the line wait: whoever gets the answer cannot take more."""
        if not self._paused and self._transport is not None and not self._closed:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._closed:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Ends it at once; nobody is told."""
        self._answer = None
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """The asker has all that it wanted: what is left of the body is read to its end, if that comes soon."""
        if not self._complete:
            self._answer = _NOBODY
            self._timer = asyncio.get_running_loop().call_later(LEFT_SECONDS, self.close)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is a transport in all but name.
        self._transport = Outlet(cast(asyncio.Transport, transport), Turn.of(asyncio.get_running_loop()))

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.close()  # nobody asked
            return
        if answer.plain and self._between:
            read = answer.read_chunks(data) if self._headed else answer.read_answer(data)
            if read is not None:
                if read[-1]:
                    self._last_of(answer, read)
                else:
                    answer.take(read)
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._deliver()
            self._break(ConnectionBroken(f"broken HTTP from the line: {error or type(error).__name__}"))
            return
        if self._body:
            self._head_bytes = 0
        elif not self._complete:
            self._head_bytes += len(data)
            if self._head_bytes > LONGEST_HEAD_BYTES:
                self._break(ConnectionBroken(f"a head, or what follows the body, of {LONGEST_HEAD_BYTES >> 10} KiB"))
                return
        # The line of a chunk's size may have begun; then the bytes do not end with one that is over.
        self._between = self._chunk_over and data.endswith(b"\r\n")
        self._deliver()
        if self._complete:
            self._end()

    def _last_of(self, answer: Answer, read: tuple[Any, ...]) -> None:
        """The rest was read without the parser, which stands where it stood: before the answer or between chunks."""
        if self._headed:
            self._parser.feed_data(LAST_CHUNK)
        else:
            self._headed = self._complete = self._keep = True
        answer.take(read)
        self._end()

    def _deliver(self) -> None:
        body = self._body
        if body:
            data = body[0] if len(body) == 1 else b"".join(body)
            body.clear()
            if self._answer is not None:
                self._answer.data(data)

    def _end(self) -> None:
        """The answer is whole: the connection is free before its asker hears of it."""
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if answer is None:
            return
        self.served += 1
        self._headers = {}
        if self._keep and not self._closed:
            self.resume()
            self._pool.keep(self)
        else:
            self.close()
        answer.complete()

    def _break(self, error: ConnectionBroken) -> None:
        answer = self._answer
        self.close()
        if answer is not None:
            answer.broken(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._pool.forget(self)
        answer = self._answer
        if answer is None:
            return
        framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if self._headed and not framed and error is None:
            self._answer = None  # HTTP/1.0 style: the end of the connection ends the body
            answer.complete()
            return
        end = "the connection was reset" if error else "the connection closed before the end of the answer"
        self._break(ConnectionBroken(end, unused=not self._headed and self.served > 0))

    # What the HTTP parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= MOST_HEADERS:
            raise ValueError(f"an answer with {MOST_HEADERS} headers")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return  # such as 100 or 103: the answer is still to come
        self._headed = True
        self._chunk_over = self._headers.get(b"transfer-encoding") == b"chunked"
        if self._answer is not None:
            self._answer.head(self._parser.get_status_code(), self._headers)

    def on_chunk_header(self) -> None:
        self._chunk_over = False

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_chunk_complete(self) -> None:
        self._chunk_over = True

    def on_message_complete(self) -> None:
        if not self._headed:
            self._headers = {}
            return
        self._complete = True
        self._chunk_over = False
        self._keep = self._parser.should_keep_alive()  # it forgets with the end of the message


class Pool:
    """Connections to one target. `headers` go with every request."""

    def __init__(self, target: Target, headers: Mapping[str, str] | None = None) -> None:
        self.target = target
        plain = {"host": target.authority, "user-agent": f"twinline/{__version__}", "accept-encoding": "identity"}
        lines = [f"{name}: {value}" for name, value in (plain | dict(headers or {})).items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header must be one line")
        self._head = ("\r\n".join(lines) + "\r\n").encode("latin-1")
        self._idle: list[Connection] = []

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A whole request as bytes; `body`, when there is one, is JSON."""
        start = f"{method} {self.target.path}{path} HTTP/1.1\r\n".encode("latin-1")
        if not body:
            return start + self._head + b"\r\n"
        framing = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        return b"".join((start, self._head, framing, body))

    def idle(self) -> Connection | None:
        """One that is open and free, or None. The one used last is taken first, so that the others can be closed."""
        while self._idle:
            connection = self._idle.pop()
            if monotonic() - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A fresh connection. Raises ConnectionBroken when nobody answers within `CONNECT_SECONDS`."""
        loop = asyncio.get_running_loop()
        target = self.target
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if target.unix:
                    _, made = await loop.create_unix_connection(lambda: Connection(self), target.unix)
                else:
                    _, made = await loop.create_connection(
                        lambda: Connection(self), target.host, target.port, ssl=True if target.tls else None
                    )
        except TimeoutError:
            raise ConnectionBroken(f"no connection to {target} within {CONNECT_SECONDS:g} s") from None
        except (OSError, UnicodeError) as error:  # the latter of a name that can be none, as by an empty label
            raise ConnectionBroken(f"cannot connect to {target}: {getattr(error, 'strerror', '') or error}") from error
        return made

    def keep(self, connection: Connection) -> None:
        if len(self._idle) < MOST_IDLE:
            connection.idle_since = monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Closes what is idle; exchanges under way go on."""
        for connection in list(self._idle):
            connection.close()
