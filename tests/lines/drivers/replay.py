"""Recorded answers, read as the client reads them: framed, decoded by a driver's reader, merged; and served again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httptools
import msgspec

from twinline.lines.drivers.driver import Dialect
from twinline.lines.protocol import TokenRequest
from twinline.lines.wire import Delta, EventLines, merge

RECORDED = Path(__file__).parents[1] / "recorded"


def ask(**fields: Any) -> TokenRequest:
    request = TokenRequest(model="m", prompt=[0, 3, 100, 101, 102, 4, 5], request_id="r", max_tokens=6, temperature=0.0)
    return msgspec.structs.replace(request, **fields)


class _Body:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)


def body(name: str) -> bytes:
    """The body of a recording; of a whole HTTP answer without its head and chunk marks."""
    data = (RECORDED / name).read_bytes()
    if not name.endswith(".http"):
        return data
    held = _Body()
    httptools.HttpResponseParser(held).feed_data(data)
    return b"".join(held.parts)


def status(name: str) -> int:
    return int((RECORDED / name).read_bytes().split(b" ", 2)[1])


def deltas(dialect: Dialect, request: TokenRequest, data: bytes, step: int = 0) -> list[Delta]:
    """What the dialect's reader makes of `data`, fed in pieces of `step` bytes (0: whole), until `[DONE]`."""
    reader, events, found = dialect.reader(request), EventLines(dialect.framing == "sse"), []
    for at in range(0, len(data), step or len(data)):
        for payload in events.feed(data[at : at + (step or len(data))]):
            if payload == b"[DONE]":
                return found
            delta = reader(payload)
            if delta is not None:
                found.append(delta)
    return found


def whole(dialect: Dialect, request: TokenRequest, data: bytes, step: int = 0) -> Delta:
    first, *rest = deltas(dialect, request, data, step)
    for delta in rest:
        first = merge(first, delta)
    return first


def said(dialect: Dialect, request: TokenRequest, text: Any = None) -> tuple[str, dict[str, Any]]:
    """Path and decoded body of what the dialect asks."""
    path, encoded = dialect.encode(request, text)
    return path, msgspec.json.decode(encoded)


class Replay:
    """A loopback server that answers each path with a recording, cut into pieces, whatever the request is.

    `asked` is what came: path and JSON body.
    """

    def __init__(self, answers: Mapping[str, str], piece: int = 37) -> None:
        self.answers, self.piece = answers, piece
        self.asked: list[tuple[str, Any]] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
        sent = await reader.readexactly(length)
        path = head.split(" ", 2)[1]
        self.asked.append((path, msgspec.json.decode(sent) if sent else None))
        data = (RECORDED / self.answers[path]).read_bytes()
        for at in range(0, len(data), self.piece):
            writer.write(data[at : at + self.piece])
            await writer.drain()
        writer.close()
