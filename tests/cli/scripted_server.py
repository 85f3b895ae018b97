"""A tiny OpenAI endpoint on loopback whose delays, tokens and failures a test scripts. For tests only."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Script:
    """How one answer goes. Delays are seconds; `pieces` are `(kind, text)`, kind `text` or `thinking`."""

    together: int = 0  # none is answered before so many have asked
    first: float = 0.0
    gap: float = 0.0
    pieces: tuple[tuple[str, str], ...] = (("text", "a"), ("text", "b"), ("text", "c"))
    token_ids: bool = False
    usage: bool = True
    status: int = 200
    error_midway: str | None = None
    cut_off: bool = False
    finish: str = "stop"


@dataclass
class Server:
    """`scripts[i]` is the i-th request's, the last one is also every later request's."""

    scripts: list[Script]
    models: list[str] = field(default_factory=lambda: ["m"])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def list_models(self, _: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "max_model_len": 4096} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        script = self.scripts[min(len(self.bodies), len(self.scripts) - 1)]
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if script.status != 200:
            error = {"message": "scripted refusal", "type": "x", "param": None, "code": None}
            return web.json_response({"error": error}, status=script.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._stream(response, script, chat="messages" in body)
        return response

    async def _stream(self, response: web.StreamResponse, script: Script, chat: bool) -> None:
        async def send(event: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        if chat:
            await send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        while len(self.bodies) < script.together:
            await asyncio.sleep(0.005)
        await asyncio.sleep(script.first)
        for i, (kind, text) in enumerate(script.pieces):
            await asyncio.sleep(script.gap if i else 0)
            if chat:
                choice: dict[str, Any] = {"delta": {"content" if kind == "text" else "reasoning_content": text}}
            else:
                choice = {"text": "", "token_ids": [7, 8]} if script.token_ids else {"text": text}
            await send({"choices": [{"index": 0, **choice, "finish_reason": None}]})
        if script.error_midway:
            await send({"error": {"message": script.error_midway, "type": "x", "code": None}})
            return
        if script.cut_off:
            return
        await send({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": script.finish}]})
        if script.usage:
            usage = {"prompt_tokens": 10, "completion_tokens": len(script.pieces), "total_tokens": 0}
            await send({"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 4}}})
        await response.write(b"data: [DONE]\n\n")


@contextmanager
def serving(*scripts: Script, models: list[str] | None = None) -> Iterator[Server]:
    """A server in a thread of its own; `url` ends in `/v1`."""
    server = Server(list(scripts) or [Script()])
    if models is not None:
        server.models = models
    loop, started = asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", server.list_models)
        app.router.add_post("/v1/completions", server.complete)
        app.router.add_post("/v1/chat/completions", server.complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    def live() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
