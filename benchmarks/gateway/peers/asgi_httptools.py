"""Reference gateway, the lean way: a bare ASGI application under uvicorn, an own client on httptools, streams unread.

Owns the path of bytes; what else it does per request is in lines.py. It is about the least that a Python gateway behind
an ASGI server can do, and so the mark to come near to: it parses no event, has no text, no quota, no continuation.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import orjson
import uvicorn

import lines

HIGH_WATER_BYTES = 1 << 20  # unread bytes of a stream at which the line is made to wait
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: line\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")


class Upstream(asyncio.Protocol):
    """A connection to a line; one request at a time, used again while both sides keep it."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._data: list[bytes] = []
        self._unread = 0
        self.status = 0
        self.complete = self.broken = self._kept = False

    def send(self, body: bytes) -> None:
        self._reset()
        self.transport.write(HEAD % len(body) + body)

    async def read(self) -> bytes:
        """What has arrived, or nothing at the end."""
        while not self._data and not self.complete:
            if self.broken:
                raise ConnectionError("the line closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data, self._data = b"".join(self._data), []
        if self._unread > HIGH_WATER_BYTES:
            self.transport.resume_reading()
        self._unread = 0
        return data

    async def whole(self) -> bytes:
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    @property
    def reusable(self) -> bool:
        return self._kept and not self.transport.is_closing()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.broken = True
        self._wake()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._data.append(data)
        before, self._unread = self._unread, self._unread + len(data)
        if before <= HIGH_WATER_BYTES < self._unread:
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        self.complete = True
        self._kept = self._parser.should_keep_alive()  # llhttp knows it only until the next message begins


async def connected(line: lines.Line) -> Upstream:
    while line.idle:
        upstream = line.idle.pop()
        if not upstream.transport.is_closing():
            return upstream
    _, upstream = await asyncio.get_running_loop().create_connection(Upstream, line.host, line.port)
    return upstream


async def read_body(receive: Any) -> bytes:
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    return body


async def answer(send: Any, status: int, body: bytes) -> None:
    headers = [JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["method"] == "GET":
        await answer(send, 200, b'{"status":"ok"}')
        return
    if dict(scope["headers"]).get(b"authorization") != lines.AUTHORIZATION:
        await answer(send, 401, b"{}")
        return
    body = await read_body(receive)
    stream = orjson.loads(body).get("stream")
    line = lines.choose()
    upstream = None
    try:
        upstream = await connected(line)
        upstream.send(body)
        first = await (upstream.read() if stream else upstream.whole())
        if not stream:
            lines.count(first)
            await answer(send, upstream.status, first)
            return
        await send({"type": "http.response.start", "status": upstream.status, "headers": [EVENTS]})
        while first:
            await send({"type": "http.response.body", "body": first, "more_body": True})
            first = await upstream.read()
        await send({"type": "http.response.body", "body": b""})
    finally:
        line.requests -= 1
        if upstream is not None:
            if upstream.reusable:
                line.idle.append(upstream)
            else:
                upstream.transport.close()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=lines.PORT, loop="uvloop", http="httptools", log_level="error",
                access_log=False, lifespan="off", backlog=4096)  # fmt: skip
