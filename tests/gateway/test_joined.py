"""What is sent in one turn of the event loop leaves in one write at its end; nothing is held back for longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from twinline.gateway.exchange import Exchange
from twinline.gateway.heads import Connection


class Wire(asyncio.Transport):
    """Keeps each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def answers(request: bytes, app: Any) -> Wire:
    """What stands on the wire once `app` has answered what `request` asks."""
    return asyncio.run(_answers(request, app))


async def _answers(request: bytes, app: Any) -> Wire:
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    config.loaded_app = app  # no middleware between
    connection = Connection(config=config, server_state=ServerState(), app_state={})
    wire = Wire()
    connection.connection_made(wire)
    connection.data_received(request)
    while connection.tasks:
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # the end of the turn
    connection.connection_lost(None)
    return wire


async def turn() -> None:
    """Until what was sent before is out."""
    for _ in range(3):
        await asyncio.sleep(0)


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    Exchange(scope, receive).json(b"{}")


def test_a_whole_answer_is_one_write() -> None:
    wire = answers(GET, whole)
    (only,) = wire.writes
    assert only.startswith(b"HTTP/1.1 200 OK\r\n")
    assert only.endswith(b"\r\n\r\n{}")


def test_a_stream_begins_with_its_first_event_and_goes_on_event_by_event() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        exchange.events(b"data: 1\n\n")
        await turn()
        exchange.events(b"data: 2\n\n")
        await turn()
        exchange.events(b"data: [DONE]\n\n", last=True)

    first, second, last = answers(GET, app).writes
    assert first.endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n")
    assert second == b"9\r\ndata: 2\n\n\r\n"
    assert last == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def test_events_of_one_turn_are_one_write() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        exchange.events(b"data: 1\n\n")
        exchange.events(b"data: 2\n\n", last=True)

    (only,) = answers(GET, app).writes
    assert only.endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n")


def test_the_connection_is_closed_where_that_was_asked() -> None:
    wire = answers(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", whole)
    assert len(wire.writes) == 1
    assert wire.closed


def test_requests_sent_at_once_are_answered_each_in_turn() -> None:
    wire = answers(GET * 3, whole)
    answer = b"".join(wire.writes)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == answer.count(b"\r\n\r\n{}") == 3


@pytest.mark.parametrize("parts", [1, 3])
def test_other_applications_are_not_touched(parts: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % parts)]}
        await send(start)
        for number in range(parts):
            await send({"type": "http.response.body", "body": b"x", "more_body": number < parts - 1})

    wire = answers(GET, app)
    assert b"".join(wire.writes).endswith(b"\r\n\r\n" + b"x" * parts)
