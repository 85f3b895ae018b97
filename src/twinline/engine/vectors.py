"""`POST /v1/embeddings` of a native line: texts as token ids in, their vectors out, in OpenAI's shape.

Owns that shape and its checks. Each text is a request of its own in the engine, batched with all others; the answer is
whole or an error. Knows no text.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from twinline.engine import wire
from twinline.engine.asgi import Receive, Send, body_of, reply, unless_disconnected
from twinline.engine.pooling import Pool
from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.scheduler import QueueFull
from twinline.facts.decimals import decimals

if TYPE_CHECKING:
    from twinline.engine.worker import Worker

MAX_INPUTS = 2048  # OpenAI's limit
FULL_SECONDS = 0.02  # until a full queue is tried again
PARAMS = SamplingParams(max_tokens=1)  # of a request that generates nothing
Ids = Annotated[list[wire.Id], msgspec.Meta(min_length=1)]


class EmbeddingsRequest(msgspec.Struct):
    """`timeout_s` and `priority` as in completions. `request_id` names the whole; its texts are `request_id-0`, ..."""

    input: Annotated[list[Ids], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    priority: wire.Integer = 0
    timeout_s: float | None = None
    request_id: str | None = None


_decoder = msgspec.json.Decoder(EmbeddingsRequest)


class Vectors:
    """The endpoint, over one worker's engine."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def answer(self, receive: Receive, send: Send) -> None:
        worker = self._worker
        asked = wire.read(await body_of(receive), _decoder)
        worker.check_model(asked.model)
        if worker.built.pooling is None:
            raise wire.BadRequest(
                "this line generates: its folder has no modules.json with a pooling, so it gives no vectors", "model"
            )
        requests = self._requests(asked)
        if taken := {request.id for request in requests} & worker.streams.keys():
            raise wire.BadRequest(f"request_id {min(taken)!r} is in use", "request_id", 409)
        queue: asyncio.Queue[Output] = asyncio.Queue()
        worker.streams |= dict.fromkeys((request.id for request in requests), queue)
        live: set[str] = set()
        try:
            await unless_disconnected(receive, self._whole(asked, requests, queue, live, send))
        finally:
            for request in requests:
                del worker.streams[request.id]
            for request_id in live:
                worker.built.engine.abort(request_id)

    def _requests(self, asked: EmbeddingsRequest) -> list[Request]:
        """Raises BadRequest for a token that the model does not have, and for a text that is too long."""
        built = self._worker.built
        assert built.pooling is not None
        for index, ids in enumerate(asked.input):
            if (worst := max(ids)) >= built.spec.vocab:
                told = f"input[{index}] has token id {worst}, and the vocabulary ends at {built.spec.vocab - 1}"
                raise wire.BadRequest(told, "input")
            if len(ids) > built.max_model_len:
                told = f"input[{index}] has {len(ids)} tokens and at most {built.max_model_len} are allowed"
                raise wire.BadRequest(told, "input", code="context_length_exceeded")
        name = asked.request_id or f"embd-{secrets.token_hex(12)}"
        deadline = None if asked.timeout_s is None else time.monotonic() + asked.timeout_s
        return [
            Request(f"{name}-{i}", ids, PARAMS, priority=asked.priority, deadline=deadline, pool=Pool(built.pooling))
            for i, ids in enumerate(asked.input)
        ]

    def _submit(self, later: deque[Request], live: set[str], *, begun: bool) -> None:
        """As many as may wait; the others come when some are over. Raises QueueFull where none was taken so far."""
        while later:
            try:
                self._worker.submit(later[0], "input")
            except QueueFull:
                if not begun and not live:
                    raise
                return
            live.add(later.popleft().id)

    async def _whole(
        self,
        asked: EmbeddingsRequest,
        requests: list[Request],
        queue: asyncio.Queue[Output],
        live: set[str],
        send: Send,
    ) -> None:
        """Waits for all vectors; the first text that fails ends the others."""
        later, found = deque(requests), dict[str, bytes]()
        while len(found) < len(requests):
            self._submit(later, live, begun=bool(found))
            if not live:  # all that were taken are over, and others' requests fill the queue
                if later[0].deadline is not None and time.monotonic() >= later[0].deadline:
                    return await self._late(send)
                await asyncio.sleep(FULL_SECONDS)
                continue
            output = await queue.get()
            live.discard(output.request_id)
            if output.vector is None:
                if output.finish == "deadline":
                    return await self._late(send)
                return await reply(send, 500, self._worker.error(output.error or f"it ended with {output.finish}"))
            found[output.request_id] = output.vector
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": index, "embedding": _written(found[request.id], asked)}
            for index, request in enumerate(requests)
        ]
        tokens = sum(len(request.prompt) for request in requests)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "model": self._worker.name, "data": data, "usage": usage}
        await reply(send, 200, wire.encode(body))

    async def _late(self, send: Send) -> None:
        late = "the request did not finish within timeout_s"
        await reply(send, 504, wire.error_body(late, "server_error", code="deadline"))


def _written(vector: bytes, asked: EmbeddingsRequest) -> str | list[float]:
    """As base64 of little-endian float32, or as numbers that read back as the same float32."""
    if asked.encoding_format == "base64":
        return base64.b64encode(vector).decode()
    return decimals(np.frombuffer(vector, "<f4"))
