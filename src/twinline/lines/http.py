"""One HTTP/1.1 exchange with a line: open a connection, send a request, read the answer as it arrives, close.

Owns bytes on a socket. Must not know what a token is. A connection carries one request: closing it is how a request is
aborted at the line, so it is never shared or pooled. Written on `asyncio.Protocol`: a read costs one wake-up here,
whatever the number of events in it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 5.0
HIGH_WATER_BYTES = 1 << 20  # unread body bytes at which the line is made to wait


class ConnectionBroken(Exception):
    """The exchange cannot go on: the peer closed early, sent broken HTTP, or was given up by `fail_after`."""

    def __init__(self, reason: str, code: str | None = None) -> None:
        super().__init__(reason)
        self.code = code


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
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a line's address must be http://host:port or unix:///path, not {url!r}")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls=tls)

    def __str__(self) -> str:
        if self.unix:
            return f"unix://{self.unix}"
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{self.path}"


class Connection(asyncio.Protocol):
    """One request and its answer. Get it from `connect`; `close` it when done, however that came about."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []
        self._unread = 0
        self._paused = False
        self._headed = False
        self._complete = False
        self._broken: ConnectionBroken | None = None
        self.headers: dict[str, str] = {}

    # What the caller does.

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Sends a request; `body`, when there is one, is JSON."""
        assert self._transport is not None
        head = f"{method} {self._target.path}{path} HTTP/1.1\r\nhost: {self._target.host}:{self._target.port}\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self._transport.write(head.encode("ascii") + b"connection: close\r\n\r\n" + body)

    async def status(self) -> int:
        """The answer's status, once its headers are here (then `headers` has them, names in lower case)."""
        while not self._headed:
            await self._wait()
        return self._parser.get_status_code()

    async def read(self) -> bytes:
        """What has arrived of the body, at least one byte; empty at its end. Raises ConnectionBroken."""
        while not self._body:
            if self._complete:
                return b""
            await self._wait()
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._unread = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def fail_after(self, seconds: float, error: ConnectionBroken) -> None:
        """Breaks the exchange with `error` unless it is over by then. A later call replaces an earlier one."""
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._fail, error)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._broken is not None:
            raise self._broken
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: ConnectionBroken) -> None:
        if self._broken is None and not self._complete:
            self._broken = error
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionBroken(f"broken HTTP from the line: {error}"))
            self.close()
            return
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self._headed and not framed and error is None:
            self._complete = True  # HTTP/1.0 style: the end of the connection ends the body
        end = "the connection was reset" if error else "the connection closed before the end of the answer"
        self._fail(ConnectionBroken(end))

    # What the HTTP parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._unread += len(data)
        if self._unread > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._complete = True


async def connect(target: Target) -> Connection:
    """Opens a connection. Raises ConnectionBroken when nobody answers within `CONNECT_SECONDS`."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if target.unix:
                _, connection = await loop.create_unix_connection(lambda: Connection(target), target.unix)
            else:
                _, connection = await loop.create_connection(
                    lambda: Connection(target), target.host, target.port, ssl=True if target.tls else None
                )
    except TimeoutError:
        raise ConnectionBroken(f"no connection to {target} within {CONNECT_SECONDS:g} s") from None
    except OSError as error:
        raise ConnectionBroken(f"cannot connect to {target}: {error.strerror or error}") from error
    return connection
