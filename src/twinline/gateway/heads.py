"""HTTP/1.1 connections that do not wait for ever: heads bounded in size and time, bodies and readers in time.

Owns what a client is told whose bytes are no request, and the hooks by which an exchange learns that its client left or
reads too slowly; uvicorn has none of this. Must not know paths or models.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twinline.gateway.errors import ApiError

MAX_HEAD_BYTES = 64 << 10  # an endless header would block the loop: the parser copies what it has for every read
HEAD_SECONDS = 30.0
BODY_SILENCE_SECONDS = 60.0  # between two pieces of a body
WRITE_SECONDS = 60.0  # how long a client may leave unread what was sent to it
CONNECTION = "twinline.connection"  # where a scope names its connection


class Watcher(Protocol):
    """The exchange under way on a connection."""

    def left(self) -> None:
        """The client is gone; nothing can be sent any more."""

    def full(self) -> None:
        """The client does not read: nothing should be sent before `free`."""

    def free(self) -> None: ...


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watcher: Watcher | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ended()
        self._stop(self._body_timer)
        self._stop(self._write_timer)
        self._body_timer = self._write_timer = None
        super().connection_lost(exc)
        if self.watcher is not None:
            watcher, self.watcher = self.watcher, None
            watcher.left()

    @property
    def full(self) -> bool:
        """The client does not read."""
        return self.flow.write_paused

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)
        if self.watcher is not None:
            self.watcher.full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._write_timer)
        self._write_timer = None
        if self.watcher is not None:
            self.watcher.free()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head:
            self._stop(self._body_timer)
            self._body_timer = self.loop.call_later(BODY_SILENCE_SECONDS, self._body_too_slow)
            return
        if not self._head_bytes:
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError(431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes."))
        elif self._head_timer is None:  # the next request of a connection that was kept
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_ended()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _head_ended(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def _body_too_slow(self) -> None:
        self._body_timer = None
        silence = f"Nothing came of the body for {BODY_SILENCE_SECONDS:g} s."
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.response_complete = True  # it is told here; the application only learns that the client left
            self._refuse(ApiError(408, silence, code="slow_body"))
        else:
            self.transport.close()

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(ApiError(408, f"The request's head took longer than {HEAD_SECONDS:g} s."))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Tells the client, unless the answer to an earlier request is still being sent, and closes."""
        if self.cycle is None or self.cycle.response_complete:
            body = error.body()
            head = f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()
