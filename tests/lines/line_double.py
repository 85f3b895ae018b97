"""A line's double for tests: a loopback server that speaks the line protocol from a script and fails on command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Script:
    """What one request gets. `fault` strikes after `fault_after` tokens were sent.

    Faults: `refuse` (before anything, with `status`), `reset`, `end` (early but well-formed), `bad_json`, `in_band`,
    `hang`, `mute_end` (everything but the usage chunk, then silence).
    """

    tokens: list[int] = field(default_factory=lambda: [10, 11, 12])
    per_chunk: int = 1
    finish: str | None = None  # None: "stop" if the last token is a stop id, else "length"
    delay: float = 0.0
    hold: asyncio.Event | threading.Event | None = None  # what comes after `hold_after` tokens waits for it
    hold_after: int = 0
    fault: str | None = None
    fault_after: int = 0
    status: int = 429
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=lambda: {"message": "the queue is full", "code": "queue_full"})
    cached: int = 3


def logprob(token: int) -> float:
    return -((token % 9) + 1) / 10


def alternatives(token: int, k: int) -> dict[int, float]:
    """The token itself and k others, some likelier than it."""
    others = {token + 1 + i: logprob(token) + (0.05 if i == 0 else -i) for i in range(k)}
    return {token: logprob(token), **others}


class LineDouble:
    """`script` maps a request's JSON to what it gets. `requests` is what came, `aborted` ids the client closed on."""

    def __init__(self) -> None:
        self.script: Callable[[dict[str, Any]], Script] = lambda request: Script()
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.active = 0
        self.health: Callable[[], dict[str, Any] | None] = lambda: {"status": "ok", "steps": 5}  # None: no answer
        self.metrics = (
            "# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{model_name="m"} 2\n# TYPE vllm:generation_tokens counter\n'
            'vllm:generation_tokens_total{model_name="m"} 7\n# TYPE python_info gauge\npython_info 1\n'
        )
        self._server: asyncio.Server | None = None

    async def start(self, path: str | None = None) -> str:
        if path:
            self._server = await asyncio.start_unix_server(self._serve, path)
            return f"unix://{path}"
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")]
            body = await reader.readexactly(int(lengths[0])) if lengths else b""
            if method == "GET":
                await self._get(writer, path)
            else:
                await self._post(reader, writer, json.loads(body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _get(self, writer: asyncio.StreamWriter, path: str) -> None:
        if path == "/metrics":
            return self._plain(writer, 200, self.metrics.encode())
        if path == "/health":
            said = self.health()
            if said is None:
                await asyncio.sleep(60)
            status = 200 if said and said["status"] == "ok" else 503
            return self._plain(writer, status, json.dumps(said).encode())
        return self._plain(writer, 200, b'{"object": "list", "data": [{"id": "m", "max_model_len": 1024}]}')

    def _plain(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def _post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        self.requests.append(request)
        script = self.script(request)
        if script.fault == "refuse":
            return self._plain(writer, script.status, json.dumps({"error": script.error}).encode(), script.headers)
        self.active += 1
        streaming = asyncio.ensure_future(self._stream(writer, request, script))
        closed = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((streaming, closed), return_when=asyncio.FIRST_COMPLETED)
            if not streaming.done():
                self.aborted.append(request["request_id"])
        finally:
            self.active -= 1
            for task in (streaming, closed):
                task.cancel()
            with contextlib.suppress(Exception):
                await asyncio.gather(streaming, closed, return_exceptions=True)

    async def _stream(self, writer: asyncio.StreamWriter, request: dict[str, Any], script: Script) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        done = len(request["output_prefix_ids"])
        tokens = script.tokens[done : request["max_tokens"]]
        stops = set(request["stop_token_ids"])
        for at in range(0, max(1, len(tokens)), script.per_chunk):
            if script.fault and script.fault != "mute_end" and at >= script.fault_after:
                return await self._strike(writer, script.fault)
            await asyncio.sleep(script.delay)
            while script.hold is not None and at >= script.hold_after and not script.hold.is_set():
                await asyncio.sleep(0.005)
            some = tokens[at : at + script.per_chunk]
            last = at + script.per_chunk >= len(tokens)
            stopped = last and bool(some) and some[-1] in stops and script.finish in (None, "stop")
            finish = (script.finish or ("stop" if stopped else "length")) if last else None
            choice: dict[str, Any] = {"index": 0, "text": "", "token_ids": some, "finish_reason": finish}
            choice["logprobs"] = None if request["logprobs"] is None else self._logprobs(some, request["logprobs"])
            choice["stop_reason"] = some[-1] if stopped else None
            if at == 0:
                choice["prompt_token_ids"] = request["prompt"]
                if request["prompt_logprobs"] is not None:
                    choice["prompt_logprobs"] = self._prompt_logprobs(request["prompt"], request["prompt_logprobs"])
            self._event(writer, {"id": "x", "object": "text_completion", "choices": [choice]})
            await writer.drain()
        if script.fault == "mute_end":
            await asyncio.sleep(60)
        usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": len(tokens)}
        usage["total_tokens"] = sum(usage.values())
        self._event(
            writer, {"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": script.cached}}}
        )
        self._raw(writer, b"data: [DONE]\n\n")
        self._raw(writer, b"")
        await writer.drain()

    async def _strike(self, writer: asyncio.StreamWriter, fault: str) -> None:
        if fault == "reset":
            writer.transport.abort()
        elif fault == "end":
            self._raw(writer, b"")
        elif fault == "bad_json":
            self._raw(writer, b'data: {"choices": [\n\n')
        elif fault == "in_band":
            self._event(writer, {"error": {"message": "a card fell off", "type": "server_error", "code": "card"}})
        else:
            await asyncio.sleep(60)

    def _logprobs(self, tokens: list[int], k: int) -> dict[str, Any]:
        return {
            "tokens": [f"token_id:{t}" for t in tokens],
            "token_logprobs": [logprob(t) for t in tokens],
            "top_logprobs": [{f"token_id:{a}": p for a, p in alternatives(t, k).items()} for t in tokens],
        }

    def _prompt_logprobs(self, prompt: list[int], k: int) -> list[dict[str, Any] | None]:
        rest = [{str(a): {"logprob": p, "rank": 1} for a, p in alternatives(t, k).items()} for t in prompt[1:]]
        return [None, *rest]

    def _event(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        self._raw(writer, b": a comment\ndata: " + json.dumps(event).encode() + b"\n\n")

    def _raw(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
