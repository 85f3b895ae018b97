"""A double of engines that give vectors: a loopback server that answers `/v1/embeddings` and Ollama's `/api/embed`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZE = 6


def vector_of(text: str | list[int], mark: float) -> list[float]:
    """Float32 values that tell the text, its tokens or the string, and who made them."""
    codes = [ord(letter) for letter in text] if isinstance(text, str) else text
    values = [mark, len(codes), sum(codes) % 97, codes[0], codes[-1], 0.125]
    return np.asarray(values, "f4").tolist()


@dataclass
class Reply:
    """What one request gets. `fault`: `status`, `reset`, `hang`, `bad_json`, `few`, `infinite`, `size` or `zeros`."""

    fault: str | None = None
    status: int = 500
    error: str = "the engine failed"
    code: str | None = None
    delay: float = 0.0  # seconds


class VectorDouble:
    """`script` maps a request's JSON to what it gets; `requests` is what came, with its path and its headers' text."""

    def __init__(self, mark: float = 1.0, counts: int | None = None) -> None:
        """`mark` is the first value of its vectors; `counts`: prompt tokens that it says it had, per text."""
        self.mark, self.counts = mark, counts
        self.script: Callable[[dict[str, Any]], Reply] = lambda request: Reply()
        self.requests: list[dict[str, Any]] = []
        self.closed = 0  # requests whose client left
        self.count = b""  # what every GET is answered with
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests that were no test of the house's own."""
        return [request for request in self.requests if request["input"] not in ([[0]], ["Hello"])]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            if head.startswith("GET "):
                writer.write(b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%b" % (len(self.count), self.count))
                return
            length = next(
                int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-l")
            )
            request = json.loads(await reader.readexactly(length)) | {"path": path}
            self.requests.append(request)
            reply = self.script(request)
            if reply.fault == "hang":
                await reader.read(1)
                self.closed += 1
            elif reply.fault != "reset":
                await asyncio.sleep(reply.delay)
                self._answer(writer, path, request, reply)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, StopIteration):
            pass
        finally:
            if not writer.is_closing():
                with contextlib.suppress(ConnectionError):
                    writer.close()

    def _answer(self, writer: asyncio.StreamWriter, path: str, request: dict[str, Any], reply: Reply) -> None:
        if reply.fault == "status":
            body = json.dumps({"error": {"message": reply.error, "code": reply.code}}).encode()
        elif reply.fault == "bad_json":
            body = b'{"data": [{"embed'
        else:
            vectors = [vector_of(text, self.mark) for text in request["input"]]
            if reply.fault == "few":
                vectors.pop()
            if reply.fault == "size":
                vectors[-1].append(1.0)
            if reply.fault == "zeros":
                vectors = [[0.0] * SIZE for _ in vectors]
            if reply.fault == "infinite":
                vectors[0][0] = 1e300
            body = json.dumps(self._written(path, request, vectors), indent=1).encode()
        status = reply.status if reply.fault == "status" else 200
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)

    def _written(self, path: str, request: dict[str, Any], vectors: list[list[float]]) -> dict[str, Any]:
        tokens = None if self.counts is None else self.counts * len(vectors)
        if path == "/api/embed":
            return {"model": request["model"], "embeddings": vectors, "prompt_eval_count": tokens}
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        if request.get("encoding_format") == "base64":
            for entry in data:
                with np.errstate(over="ignore"):
                    entry["embedding"] = base64.b64encode(np.asarray(entry["embedding"], "<f4").tobytes()).decode()
        usage = None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data[::-1], "model": request["model"], "usage": usage}
