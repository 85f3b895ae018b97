"""The worker's HTTP application over an engine that does as the test says: what it asks for, how it tells failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from twinline.engine.build import Built
from twinline.engine.grammars.compiling import Grammars
from twinline.engine.loop import Counters
from twinline.engine.metrics import Metrics
from twinline.engine.request import Output, Request
from twinline.engine.scheduler import IdInUse, TooLong
from twinline.engine.worker import Worker

OUTPUTS = (Output("", (5,)), Output("", (6,), finish="length"))
FAILED = (Output("", (5,)), Output("", finish="error", error="the engine failed: it burns"))


class Scripted:
    """An engine that answers every request with the same outputs, or refuses it; with none, it never answers."""

    def __init__(self, outputs: tuple[Output, ...] = (), refusal: Exception | None = None) -> None:
        self.outputs, self.refusal = outputs, refusal
        self.failure = str(refusal) if isinstance(refusal, RuntimeError) else None
        self.failure_code = "line_failed"
        self.counters = Counters()
        self.scheduler = SimpleNamespace(running=0, waiting=0)
        self.deliver: Callable[[list[Output]], None]
        self.aborted: list[str] = []

    def submit(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal
        for output in self.outputs:
            self.deliver([Output(request.id, output.tokens, finish=output.finish, error=output.error)])

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


def call(engine: Scripted, body: dict[str, Any] | None, *, leaves: bool = False) -> tuple[int, list[bytes]]:
    """Status and body parts of one call: a completion, or the health without a body. `leaves`: the client does."""
    worker = Worker("tiny", Metrics("tiny"))
    worker.built = cast(Built, SimpleNamespace(engine=engine, spec=SimpleNamespace(vocab=10), pooling=None))
    worker.grammars = cast(Grammars, SimpleNamespace(seconds=0))
    engine.deliver = worker.deliver
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def go() -> None:
        worker.loop = asyncio.get_running_loop()
        messages = [
            {"type": "http.request", "body": json.dumps({"prompt": [1], "request_id": "a"} | (body or {})).encode()}
        ]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            if not leaves:
                await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        where = ("GET", "/health") if body is None else ("POST", "/v1/completions")
        await asyncio.wait_for(worker({"type": "http", "method": where[0], "path": where[1]}, receive, send), 10)
        assert worker.streams == {}

    asyncio.run(go())
    status = sent[0]["status"] if sent else 0
    return status, [message["body"] for message in sent[1:]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_ended_is_not_aborted(stream: bool) -> None:
    """Its id may be the next request's by the time that the engine hears of it."""
    engine = Scripted(OUTPUTS)
    assert call(engine, {"stream": stream})[0] == 200
    assert engine.aborted == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("outputs", [(), OUTPUTS[:1]], ids=["waiting", "running"])
def test_a_request_whose_client_left_is_aborted(stream: bool, outputs: tuple[Output, ...]) -> None:
    engine = Scripted(outputs)
    call(engine, {"stream": stream}, leaves=True)
    assert engine.aborted == ["a"]


@pytest.mark.parametrize(
    ("refusal", "status", "param", "code"),
    [
        (RuntimeError("3 steps in a row failed"), 503, None, "line_failed"),
        (TooLong("70 tokens and max_model_len is 64"), 400, "prompt", "context_length_exceeded"),
        (ValueError("the prompt has 0 tokens"), 400, "prompt", None),
        (IdInUse("request id 'a' is in use: choose another"), 409, "request_id", None),
    ],
)
def test_what_the_engine_refuses(refusal: Exception, status: int, param: str | None, code: str | None) -> None:
    engine = Scripted(refusal=refusal)
    answered, (body,) = call(engine, {})
    error = json.loads(body)["error"]
    assert (answered, error["param"], error["code"]) == (status, param, code)
    assert str(refusal) in error["message"]
    assert engine.aborted == []


def test_a_request_that_fails_before_its_answer_began() -> None:
    status, (body,) = call(Scripted(FAILED), {})
    assert status == 500
    assert json.loads(body)["error"]["type"] == "server_error"
    assert "it burns" in json.loads(body)["error"]["message"]


def test_a_stream_that_fails_ends_with_an_error_and_without_done() -> None:
    status, parts = call(Scripted(FAILED), {"stream": True, "stream_options": {"include_usage": True}})
    events = b"".join(parts).decode().strip().split("\n\n")
    first, last = (json.loads(event.removeprefix("data: ")) for event in events)
    assert (status, first["choices"][0]["token_ids"]) == (200, [5])
    assert (last["error"]["code"], "it burns" in last["error"]["message"]) == ("line_failed", True)


def test_health_is_503_once_the_engine_failed() -> None:
    status, (body,) = call(Scripted(refusal=RuntimeError("it burns")), None)
    assert (status, json.loads(body)["status"], json.loads(body)["reason"]) == (503, "error", "it burns")
    assert call(Scripted(), None)[0] == 200
