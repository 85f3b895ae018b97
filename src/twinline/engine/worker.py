"""The native line's process: one model, the line protocol over HTTP on loopback, token ids in and out.

    python -m twinline.engine.worker --model DIR --name NAME --port 0

Owns the process, its HTTP surface and the hand-over between the engine's thread and the event loop. Knows no text. When
ready it prints one JSON line on stdout, `{"ready": true, "port": ...}`, or `{"error": "..."}` and exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from twinline.engine import wire
from twinline.engine.asgi import Receive, Send, body_of, reply, unless_disconnected
from twinline.engine.build import Built, Options, build
from twinline.engine.devices.device import dtype_name
from twinline.engine.grammars.compiling import Grammars
from twinline.engine.grammars.grammar import BadGrammar, Grammar
from twinline.engine.metrics import Metrics
from twinline.engine.request import Output, Request
from twinline.engine.scheduler import IdInUse, QueueFull, TooLong
from twinline.engine.vectors import Vectors
from twinline.facts.end_tokens import end_ids

log = logging.getLogger(__name__)

Scope = dict[str, Any]
FAILURE_CHECK_SECONDS = 0.25
GRACE_SECONDS = 5  # for requests that still run when the process is told to end


class Worker:
    """The ASGI application over one engine."""

    def __init__(self, name: str, metrics: Metrics):
        self.name, self.metrics = name, metrics
        self.created = int(time.time())
        self.streams: dict[str, asyncio.Queue[Output]] = {}
        self.built: Built
        self.eos: frozenset[int] = frozenset()
        self.grammars: Grammars
        self.vectors = Vectors(self)
        self.loop: asyncio.AbstractEventLoop

    def deliver(self, outputs: Sequence[Output]) -> None:
        """Called on the engine's thread, once per step."""
        self.loop.call_soon_threadsafe(self._dispatch, outputs)

    def _dispatch(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            stream = self.streams.get(output.request_id)
            if stream is not None:
                stream.put_nowait(output)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        routes = {
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/embeddings"): self.vectors.answer,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }
        handler = routes.get((method, path))
        if handler is None:
            known = any(p == path for _, p in routes)
            status, text = (405, f"{method} is not allowed on {path}") if known else (404, f"there is no {path}")
            await reply(send, status, wire.error_body(text, "invalid_request_error"))
            return
        try:
            await handler(receive, send)
        except wire.BadRequest as error:
            body = wire.error_body(str(error), "invalid_request_error", error.param, error.code)
            await reply(send, error.status, body)
        except QueueFull as error:
            body = wire.error_body(str(error), "rate_limit_error", code="queue_full")
            await reply(send, 429, body, (b"retry-after", b"1"))

    async def _models(self, receive: Receive, send: Send) -> None:
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "twinline",
                "max_model_len": self.built.max_model_len, "lacks": self.lacks, "embeds": self.embeds,
                "simulated": self.built.device.simulated}  # fmt: skip
        await reply(send, 200, wire.encode({"object": "list", "data": [card]}))

    @property
    def embeds(self) -> bool:
        """Whether it gives vectors, and nothing else."""
        return self.built.pooling is not None

    @property
    def lacks(self) -> list[str]:
        """Features of a native line that this one has not."""
        return [] if self.grammars.supported else ["grammar", "patterns"]

    async def _health(self, receive: Receive, send: Send) -> None:
        engine = self.built.engine
        body = {
            "status": "error" if engine.failure else "ok",
            "reason": engine.failure,
            "code": engine.failure_code if engine.failure else None,
            "steps": engine.counters.steps,
            "tokens_generated": engine.counters.generated_tokens,
            "grammar_seconds": self.grammars.seconds,
            "running": engine.scheduler.running,
            "waiting": engine.scheduler.waiting,
        }
        await reply(send, 503 if engine.failure else 200, wire.encode(body))

    async def _metrics(self, receive: Receive, send: Send) -> None:
        await reply(send, 200, self.metrics.text(), content=(b"content-type", b"text/plain; version=0.0.4"))

    async def _completions(self, receive: Receive, send: Send) -> None:
        asked = wire.decode(await body_of(receive))
        self.check_model(asked.model)
        if self.built.pooling is not None:
            raise wire.BadRequest("this line gives vectors and generates nothing: use /v1/embeddings", "model")
        request_id = asked.request_id or f"cmpl-{secrets.token_hex(12)}"
        if request_id in self.streams:
            raise wire.BadRequest(f"request_id {request_id!r} is in use", "request_id", 409)
        vocab = self.built.spec.vocab
        request = wire.to_request(asked, request_id, vocab=vocab, eos=self.eos, seed=secrets.randbits(63))
        if asked.grammar is not None:
            await self._constrain(request, asked.grammar)
        if request_id in self.streams:  # since
            raise wire.BadRequest(f"request_id {request_id!r} is in use", "request_id", 409)
        carried = len(asked.output_prefix_ids)
        log.debug("request %s: %d prompt tokens, %d to go on from", request_id, len(asked.prompt), carried)
        queue = self.streams[request_id] = asyncio.Queue()
        live = False
        try:
            self.submit(request)
            live = True
            answer = self._stream if asked.stream else self._whole
            live = not await unless_disconnected(receive, answer(asked, request, queue, send))
        finally:
            del self.streams[request_id]
            if live:  # an abort that comes late would hit the next request of the same id
                self.built.engine.abort(request_id)

    def check_model(self, asked: str | None) -> None:
        if asked is not None and asked != self.name:
            raise wire.BadRequest(f"this line serves {self.name!r}, not {asked!r}", "model", 404, "model_not_found")

    async def _constrain(self, request: Request, said: wire.GrammarField) -> None:
        try:
            grammar = Grammar(said.kind, said.text, said.after, said.opener)
            request.constraint = await self.grammars.constraint(grammar, request.params.stop_token_ids, request.output)
        except BadGrammar as error:
            raise wire.BadRequest(str(error), "grammar") from None
        except ValueError as error:
            raise wire.BadRequest(str(error), "output_prefix_ids") from None

    def submit(self, request: Request, param: str = "prompt") -> None:
        try:
            self.built.engine.submit(request)
        except IdInUse as error:  # its client has gone, and the step that it was in has not ended
            raise wire.BadRequest(str(error), "request_id", 409) from None
        except TooLong as error:
            raise wire.BadRequest(str(error), param, code="context_length_exceeded") from None
        except ValueError as error:
            raise wire.BadRequest(str(error), param) from None
        except RuntimeError as error:
            raise wire.BadRequest(str(error), status=503, code=self.built.engine.failure_code) from None

    def _envelope(self, request: Request) -> dict[str, Any]:
        return {"id": request.id, "object": "text_completion", "created": int(time.time()), "model": self.name}

    def error(self, message: str) -> bytes:
        return wire.error_body(message, "server_error", code=self.built.engine.failure_code)

    async def _stream(
        self, asked: wire.CompletionRequest, request: Request, queue: asyncio.Queue[Output], send: Send
    ) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        envelope, first, count, cached = self._envelope(request), True, 0, 0
        while True:
            outputs = [await queue.get()]
            while not queue.empty():
                outputs.append(queue.get_nowait())
            events = []
            if first:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            for output in outputs:
                chosen = wire.choice(output)
                if first:
                    chosen["prompt_token_ids"], first = request.prompt, False
                count, cached = count + len(output.tokens), output.cached_tokens
                events.append(b"data: " + wire.encode(envelope | {"choices": [chosen]}) + b"\n\n")
                if output.error:
                    events[-1] = b"data: " + self.error(output.error) + b"\n\n"
            last = outputs[-1]
            if last.finish and not last.error:
                if asked.stream_options and asked.stream_options.include_usage:
                    totals = wire.usage(len(request.prompt), request.carried + count, cached)
                    events.append(b"data: " + wire.encode(envelope | {"choices": [], "usage": totals}) + b"\n\n")
                events.append(b"data: [DONE]\n\n")
            await send({"type": "http.response.body", "body": b"".join(events), "more_body": last.finish is None})
            if last.finish:
                return

    async def _whole(
        self, asked: wire.CompletionRequest, request: Request, queue: asyncio.Queue[Output], send: Send
    ) -> None:
        outputs = [await queue.get()]
        while outputs[-1].finish is None:
            outputs.append(await queue.get())
        last = outputs[-1]
        if last.error:
            await reply(send, 500, self.error(last.error))
            return
        joined = dataclasses.replace(
            last,
            tokens=tuple(t for o in outputs for t in o.tokens),
            logprobs=tuple(p for o in outputs for p in o.logprobs),
            prompt_logprobs=outputs[0].prompt_logprobs,
        )
        chosen = wire.choice(joined) | {"prompt_token_ids": request.prompt}
        totals = wire.usage(len(request.prompt), request.carried + len(joined.tokens), last.cached_tokens)
        await reply(send, 200, wire.encode(self._envelope(request) | {"choices": [chosen], "usage": totals}))


def end_tokens(directory: Path) -> frozenset[int]:
    """The model's end tokens: `generation_config.json` first, then `config.json`. Raises ValueError."""
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        try:
            said = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        if not isinstance(said, dict):
            raise ValueError(f"{file} cannot be read: it holds no object")
        if ids := end_ids([said], file):
            return ids
    return frozenset()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twinline-worker", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--watch-stdin", action="store_true", help="exit when stdin closes, so as not to outlive a parent"
    )
    parser.add_argument("--log-level", default="info")
    for field in dataclasses.fields(Options):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    return parser.parse_args()


async def _serve(worker: Worker, sock: socket.socket, options: argparse.Namespace) -> int:
    """Serves until asked to end, or until the engine has failed; the exit code."""
    worker.loop = asyncio.get_running_loop()
    level = options.log_level if options.log_level == "debug" else "warning"
    config = uvicorn.Config(
        worker,
        log_level=level,
        lifespan="off",
        access_log=False,
        timeout_keep_alive=300,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)  # uvicorn raises it again when it is done, which by default would kill the process
    if options.watch_stdin:

        def watch() -> None:
            # Not sys.stdin: a thread that holds its lock when the interpreter ends makes it abort.
            while os.read(sys.stdin.fileno(), 4096):
                pass
            server.should_exit = server.force_exit = True

        threading.Thread(target=watch, daemon=True, name="watch-stdin").start()
    worker.built.engine.start()
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    built = worker.built
    ready = {
        "ready": True,
        "port": sock.getsockname()[1],
        "model": worker.name,
        "max_model_len": built.max_model_len,
        "vocab_size": built.spec.vocab,
        "device": built.device.name,
        "dtype": dtype_name(built.dtype),
        "simulated": built.device.simulated,
        "kv_tokens": built.kv_tokens,
        "providers": sorted({c.provider for c in built.ops.choices}),
        "lacks": worker.lacks,
        "embeds": worker.embeds,
    }
    print(json.dumps(ready), flush=True)
    while not serving.done():
        await asyncio.wait({serving}, timeout=FAILURE_CHECK_SECONDS)
        if built.engine.failure and not server.should_exit:
            # Whoever started this process sees it end, and need not ask why it still answers.
            log.error("ending: %s", built.engine.failure)
            server.should_exit = True
    await serving
    worker.grammars.close()
    built.engine.stop()
    if built.engine.failure_code == "device_hung":
        # The engine's thread will not end, and what a driver does at exit may wait for the device too.
        logging.shutdown()
        os._exit(1)
    return 1 if built.engine.failure else 0


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address. Its protocol is named: only then does asyncio send each token at once; else the
    second small write of an answer waits for the first's acknowledgement, 40 ms on a connection that is kept."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def main() -> int:
    arguments = _arguments()
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    engine_options = Options(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Options)})
    metrics = Metrics(arguments.name)
    worker = Worker(arguments.name, metrics)
    try:
        sock = bound(arguments.host, arguments.port)
        worker.eos = end_tokens(arguments.model)  # before the weights, which take minutes
        worker.built = build(arguments.model, engine_options, worker.deliver, metrics.observe)
        worker.grammars = Grammars(arguments.model, worker.built.spec.vocab)
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)):
            log.exception("the start failed")
        print(json.dumps({"error": str(error) or repr(error)}), flush=True)
        return 1
    metrics.watch(worker.built)
    gc.freeze()  # what is loaded now stays: the collector need not walk it between steps
    return asyncio.run(_serve(worker, sock, arguments))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
