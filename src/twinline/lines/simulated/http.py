"""HTTP/1.1 as a line serves it, with a hand on the connection: it can be reset, ended early or left silent.

Owns bytes on a socket, one exchange at a time on each. Must not know what is asked or answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import httptools

BODY_LIMIT = 64 << 20
HEAD_LIMIT = 64 << 10
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
           413: "Content Too Large", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
           403: "Forbidden"}  # fmt: skip
MARK = b"x-twinline-simulated: 1\r\n"


class Exchange(Protocol):
    """Whoever answers a request that takes time."""

    def left(self) -> None:
        """The client is gone; nothing can be sent any more."""


Handler = Callable[["Connection", str, str, bytes], None]


class Connection(asyncio.Protocol):
    """One client. `handle` gets (connection, method, path, body) and calls `plain`, or `begin` and what follows it."""

    def __init__(self, handle: Handler, connections: set[Connection]) -> None:
        self._handle = handle
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path, self._body, self._size = b"", [b""], 0
        self._busy = self._done = self._again = False
        self.exchange: Exchange | None = None

    @property
    def local(self) -> bool:
        """Whether the client is on this machine."""
        assert self._transport is not None
        peer = self._transport.get_extra_info("peername")
        return bool(peer) and ipaddress.ip_address(peer[0]).is_loopback

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._leave()

    def eof_received(self) -> bool:
        return False  # a client that ends its side takes no answer either: the exchange is aborted

    def data_received(self, data: bytes) -> None:
        if self._busy:
            self.fin()  # pipelining is not spoken here
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._again = False
            self.plain(400, b'{"error": {"message": "broken HTTP: %s"}}' % type(error).__name__.encode())
            return
        if self._done:
            self._done, self._busy = False, True
            self._handle(self, self._parser.get_method().decode(), self._path.decode("latin-1"), b"".join(self._body))

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._path, self._body, self._size = b"", [], 0

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count(len(url), HEAD_LIMIT)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value), HEAD_LIMIT)

    def on_headers_complete(self) -> None:
        self._size = 0
        self._again = self._parser.should_keep_alive()  # once the message is complete it says yes to all

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._count(len(data), BODY_LIMIT)

    def on_message_complete(self) -> None:
        self._done = True

    def _count(self, size: int, limit: int) -> None:
        self._size += size
        if self._size > limit:
            raise httptools.HttpParserError("too large")

    # What an exchange calls. After the connection is gone all of it does nothing.

    def plain(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        """A whole answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{lines}"
        self._write(head.encode("latin-1") + MARK + b"\r\n" + body)
        self._next()

    def begin(self) -> None:
        """The head of a stream of events."""
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
            b"transfer-encoding: chunked\r\n" + MARK + b"\r\n"
        )

    def send(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The stream's proper end."""
        self._write(b"0\r\n\r\n")
        self._next()

    def fin(self) -> None:
        """An end in the middle: FIN."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """An end in the middle: RST."""
        if self._transport is not None:
            raw = cast(socket.socket, self._transport.get_extra_info("socket"))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _next(self) -> None:
        self.exchange, self._busy = None, False
        if not self._again and self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.left()
