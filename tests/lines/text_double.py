"""A remote's double that speaks OpenAI's API in text, from a script, and breaks on command."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Words:
    """One answer: `pieces` of content, after `thoughts`. It breaks after `breaks_after` of them, if that is given."""

    pieces: list[str] = field(default_factory=lambda: ["The ", "sky ", "is ", "blue."])
    thoughts: list[str] = field(default_factory=list)
    breaks_after: int | None = None
    status: int = 200  # another one comes with `error`
    error: dict[str, Any] = field(default_factory=lambda: {"message": "the remote is not well", "code": "overloaded"})
    told: dict[str, Any] | None = None  # an error in the stream, in place of an answer
    finish: str = "stop"
    delay: float = 0.0
    usage: dict[str, int] | None = None
    lacks: str | None = None  # a field that it refuses


class TextDouble:
    """`words` is what the next requests get; `requests` is what came."""

    def __init__(self, words: Words | None = None) -> None:
        self.words = words or Words()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ", 2)[1]
            length = next(int(line.split(":")[1]) for line in head.lower().split("\r\n") if "content-length" in line)
            self.requests.append((path, json.loads(await reader.readexactly(length))))
            await self._answer(writer, path)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, path: str) -> None:
        words = self.words
        if words.lacks in self.requests[-1][1]:
            body = b'{"error": {"message": "Unsupported parameter", "code": "unsupported_parameter"}}'
            writer.write(b"HTTP/1.1 400 X\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            return
        if words.status != 200:
            body = json.dumps({"error": words.error}).encode()
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (words.status, len(body), body))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        if words.told is not None:
            self._event(writer, {"error": words.told})
            return
        said = [("reasoning_content", thought) for thought in words.thoughts]
        said += [("content", piece) for piece in words.pieces]
        for number, (kind, text) in enumerate(said):
            if words.breaks_after == number:
                await writer.drain()
                writer.transport.abort()
                return
            await asyncio.sleep(words.delay)
            self._event(writer, self._choice(path, kind, text, None))
        if words.breaks_after is not None:
            writer.transport.abort()
            return
        self._event(writer, self._choice(path, "content", "", words.finish))
        usage = {"prompt_tokens": 9, "completion_tokens": len(said) + 1, "total_tokens": len(said) + 10}
        self._event(writer, {"choices": [], "usage": words.usage or usage})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    def _choice(self, path: str, kind: str, text: str, finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {kind: text}} if path.endswith("chat/completions") else {"text": text}
        return {"id": "remote-1", "choices": [choice]}

    def _event(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
