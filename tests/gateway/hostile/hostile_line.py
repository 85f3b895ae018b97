"""A line that answers with whatever bytes a test says, in a loop of the gateway's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

Answer = Callable[[dict[str, Any]], AsyncIterator[bytes]]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"  # its end is the connection's
HEALTH = b'HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{"status": "ok", "steps": 12}'


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def tokens(*ids: int, **choice: Any) -> bytes:
    return event(choices=[{"index": 0, "token_ids": list(ids), **choice}])


def bytes_of(*parts: bytes) -> Answer:
    """Just these, then the end."""

    async def answer(request: dict[str, Any]) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return answer


def endless(head: bytes, part: bytes, pause: float = 0.0) -> Answer:
    """A head, then the same for ever."""

    async def answer(request: dict[str, Any]) -> AsyncIterator[bytes]:
        yield head
        while True:
            yield part
            await asyncio.sleep(pause)

    return answer


class HostileLine:
    """`answer` makes what a request gets, `told` what each GET gets. `sent` counts bytes of the answer under way."""

    def __init__(self) -> None:
        self.answer: Answer = bytes_of()
        self.told: dict[str, Answer] = {}
        self.requests = 0
        self.sent = 0
        self.open = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")]
            body = await reader.readexactly(int(lengths[0])) if lengths else b"{}"
            answer = self.told.get(path, bytes_of(HEALTH)) if method == "GET" else self.answer
            self.requests += method == "POST"
            posted = method == "POST"
            self.sent = 0 if posted else self.sent
            async for part in answer(json.loads(body)):
                writer.write(part)
                self.sent += len(part) * posted
                await writer.drain()
        self.open -= 1
        writer.close()
