"""HTTP/1.1 connections that do not wait for ever: heads bounded in size and time, bodies and readers in time, and all
of them in number.

Owns what a client is told whose bytes are no request, and the hooks by which an exchange learns that its client left or
reads too slowly; uvicorn has none of this. Must not know paths or models. docs/security.md lists what it stands up to.
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import Any, Protocol

from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from twinline.gateway.crowd import Crowd
from twinline.gateway.errors import ApiError, stopping
from twinline.gateway.repeated import Repeated, is_short
from twinline.lines.turn import Outlet, Turn

MAX_HEAD_BYTES = 64 << 10  # an endless header would block the loop: the parser copies what it has for every read
HEAD_SECONDS = 30.0
LAST_HEAD_SECONDS = 1.0  # the same while the server ends
BODY_SILENCE_SECONDS = 60.0  # between two pieces of a body
LEAST_BODY_RATE = 4096  # bytes a second, of a body that has taken longer than that silence
MOST_FRAMING_BYTES = 128 << 10  # how much longer than twice a body its chunks' heads, extensions and trailers may be
MOST_UNREAD_BYTES = 64 << 20  # of a body whose answer was sent before its end: read and dropped, then it is enough
MOST_AHEAD = 32  # requests that a client may send before it has the answer to the first
WRITE_SECONDS = 60.0  # how long a client may leave unread what was sent to it
CONNECTION = "twinline.connection"  # where a scope names its connection
CYCLE = "twinline.cycle"  # and uvicorn's book of the request and its answer
log = logging.getLogger(__name__)


class Watcher(Protocol):
    """The exchange under way on a connection."""

    def left(self) -> None:
        """The client is gone; nothing can be sent any more."""

    def full(self) -> None:
        """The client does not read: nothing should be sent before `free`."""

    def free(self) -> None: ...

    def cut_off(self) -> None:
        """The server ends and waits no longer."""


class AtOnce(Protocol):
    """Answers a request whose body is here without a task. Returns what its head said of the caller, to be handed in
    with the next that has the same head; None: it cannot, and nothing has happened."""

    def __call__(self, scope: HTTPScope, cycle: RequestResponseCycle, body: bytes, caller: object, /) -> object: ...


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, crowd: Crowd | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crowd = crowd or Crowd()
        self._body_bytes = 0  # of the request's body so far
        self._sent_bytes = 0  # that came since its head
        self._body_began = 0.0
        self._deaf = False  # what comes now is no request of ours
        self._last = False  # the server ends: after the next answer
        self.watcher: Watcher | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_head = self._between = True  # `_between`: the parser is, nothing of a request has come
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0  # or a head that came again waits for its body
        # An application that can do without a task says so.
        self._at_once: AtOnce | None = getattr(self.app, "at_once", None)
        self._waits: tuple[RequestResponseCycle, ASGI3Application] | None = None  # for the rest of its body
        self._repeated = Repeated()
        self._begun: tuple[RequestResponseCycle, object] | None = None  # without a task, and who asks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.turn = Turn.of(self.loop)
        outlet = Outlet(transport, self.turn)
        super().connection_made(outlet)  # type: ignore[arg-type]  # all of a transport that is used
        if len(self.connections) > self._crowd.most and not self._make_room():
            full = {"retry-after": "1"}
            self._refuse(
                ApiError(503, "The gateway has too many connections.", code="too_many_connections", headers=full)
            )
            return
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _make_room(self) -> bool:
        """Closes the connections that have waited longest without a request under way; whether there are any."""
        others = (made for made in self.connections if isinstance(made, Connection) and made is not self)
        leaving = self._crowd.leaving(others, self.loop.time())
        for made in leaving:
            self.connections.discard(made)  # counted no more, though the loop takes its time to close it
            made.transport.abort()
        return bool(leaving)

    @property
    def idle(self) -> bool:
        """No request is under way: none came, or not yet its whole head, or all were answered."""
        return self._in_head and not self._repeated.held and (self.cycle is None or self.cycle.response_complete)

    @property
    def since(self) -> float:
        """When it became idle, or the head began that is not whole yet (the loop's clock)."""
        if self._head_timer is not None:
            return self._head_timer.when() - HEAD_SECONDS
        return self._idle_since

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ended()
        self._stop(self._body_timer)
        self._stop(self._write_timer)
        self._stop(self.timeout_keep_alive_task)
        self._body_timer = self._write_timer = self.timeout_keep_alive_task = None
        super().connection_lost(exc)
        if self._waits is not None:
            waits, self._waits = self._waits, None
            super()._start_asgi_task(*waits)  # it will find that the client left
        if self.cycle is not None:
            self.cycle.on_response = _nothing  # else each would keep the other; uvicorn does so at the end of a task
        if self.watcher is not None:
            watcher, self.watcher = self.watcher, None
            watcher.left()

    def shutdown(self) -> None:
        """A request whose head is here is still taken, and one that a client has begun or has connected for."""
        held, self._repeated.held = self._repeated.held, b""
        self._repeated.forget()  # the next answer is the last, which its head has to say
        if held:
            self.data_received(held)
        if self.idle and self._head_timer is not None:
            self._last = True
            self._head_ended()
            self._head_timer = self.loop.call_later(LAST_HEAD_SECONDS, self._too_slow)
        else:
            super().shutdown()

    def cut_off(self) -> None:
        """The server ends and waits for no answer any longer; one that has a task is told by that."""
        if self._waits is not None:
            self._waits = None
            self._refuse(stopping())
        elif self.watcher is not None:
            self.watcher.cut_off()

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
        if self._deaf:
            return
        repeated = self._repeated
        if repeated.known is not None:
            if repeated.held:
                data, repeated.held = repeated.held + data, b""
            if self._again(data):
                return
        whole, alone = self._between, repeated.alone
        repeated.alone, self._begun = b"", None
        if self._in_head:
            self._head_bytes += len(data)
            read = repeated.without_upgrade(data, whole)
            data, whole = read, whole and read is data
        super().data_received(data)
        if whole or alone:
            self._remember(alone + data, cut_once=whole)
        if self.transport.is_closing():
            return
        if not self._in_head:
            self._body_goes_on(len(data))
            return
        if not self._head_bytes:
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError(431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes."))
        elif self._head_timer is None:  # the next request of a connection that was kept
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _remember(self, data: bytes, cut_once: bool) -> None:
        """`data` came since the parser was between two requests. They may be one that comes again, or the first of its
        two pieces."""
        if self._begun is not None:
            cycle, caller = self._begun
            if cycle is self.cycle and self._between:
                self._repeated.keep(data, caller)
        elif cut_once and self._waits is not None and self._waits[0] is self.cycle:
            self._repeated.alone = data

    def _again(self, data: bytes) -> bool:
        """Answers a request whose head is that of the one before; False: it is read like any other."""
        cycle = self.cycle
        if not (cycle.response_complete and cycle.keep_alive and self._between):
            return False
        body = self._repeated.body_in(data)
        if body is None:
            return False
        if not body:
            self._idle_since = self.loop.time()
            return True
        cycle.response_started = cycle.response_complete = False
        cycle.default_headers = self.server_state.default_headers
        cycle.scope[CYCLE] = cycle  # type: ignore[literal-required]
        caller = self._taken(cycle, body, self._repeated.caller)
        if caller is not None:
            self._repeated.caller = caller
            return True
        del cycle.scope[CYCLE]  # type: ignore[misc]
        cycle.response_started = cycle.response_complete = True
        return False

    def _taken(self, cycle: RequestResponseCycle, body: bytes, caller: object) -> object:
        """Who asks, if the application answers without a task; else None."""
        assert self._at_once is not None
        try:
            return self._at_once(cycle.scope, cycle, body, caller)
        except Exception:
            log.exception("a request cannot be answered without a task")
            cycle.scope[CYCLE] = cycle  # type: ignore[literal-required]
            return None

    def _body_goes_on(self, came: int) -> None:
        """More of a body came, and that was not all."""
        now = self.loop.time()
        if not self._sent_bytes:
            self._body_began = now
        self._sent_bytes += came
        seconds = now - self._body_began
        if self._sent_bytes > 2 * self._body_bytes + MOST_FRAMING_BYTES:
            self._refuse(ApiError(400, "The body's chunks are more framing than body.", code="invalid_http"))
        elif seconds > BODY_SILENCE_SECONDS and self._body_bytes < seconds * LEAST_BODY_RATE and not self.pipeline:
            self._refuse(ApiError(408, f"The body comes slower than {LEAST_BODY_RATE} bytes/s.", code="slow_body"))
        else:
            self._stop(self._body_timer)
            self._body_timer = self.loop.call_later(BODY_SILENCE_SECONDS, self._body_too_slow)

    def _unsupported_upgrade_warning(self) -> None:
        """Clients may ask for another protocol; that they do not get it is no news."""

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_AHEAD:
            raise ValueError(f"more than {MOST_AHEAD} requests without waiting for an answer")
        self._between = False
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._repeated.forget()
        self._body_bytes = self._sent_bytes = 0
        self._head_ended()
        super().on_headers_complete()
        self.scope[CYCLE] = self.cycle  # type: ignore[literal-required]
        self.cycle.keep_alive = self.cycle.keep_alive and not self._last
        self.headers = []  # what follows a chunked body are trailers: nobody may take them for the request's headers
        if self.parser.should_upgrade():
            # The parser takes what comes now for another protocol, then for requests; a body may look like one.
            self._deaf = True
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._at_once is None or cycle.scope["method"] != "POST" or cycle.waiting_for_100_continue:
            super()._start_asgi_task(cycle, app)
        elif not cycle.more_body:
            self._begin(cycle, app)
        elif is_short(cycle.scope["headers"]):
            self._waits = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """The request's body is here."""
        caller = self._taken(cycle, bytes(cycle.body), None)
        if caller is not None:
            cycle.body = bytearray()
            self._begun = cycle, caller
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)
        if self._body_bytes > MOST_UNREAD_BYTES and self.cycle.response_complete:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._in_head = self._between = True
        self._head_bytes = 0
        self._stop(self._body_timer)
        self._body_timer = None
        super().on_message_complete()
        if self._waits is not None and self._waits[0] is self.cycle:
            waits, self._waits = self._waits, None
            self._begin(*waits)

    def on_response_complete(self) -> None:
        """As in uvicorn, but that the timer of an idle connection is not stopped and made anew by every request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again(self.timeout_keep_alive)
        if self.expect_100_continue and not self._in_head:
            self._close()  # the body was not asked for: what comes next may be it, or another request

    def _look_again(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        """It goes on: its handler looks whether the connection was idle."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        held = self._repeated.held
        if not (self.idle or held) or self._head_timer is not None:
            return  # the end of the next answer sets it again
        left = self._idle_since + (BODY_SILENCE_SECONDS if held else self.timeout_keep_alive) - self.loop.time()
        if left > 0:
            self._look_again(left)
        elif held:
            self._body_too_slow()
        else:
            self._close()

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
        if self.pipeline:  # it is not read while an earlier request is answered
            self._body_timer = self.loop.call_later(BODY_SILENCE_SECONDS, self._body_too_slow)
            return
        self._body_timer = None
        self._refuse(ApiError(408, f"Nothing came of the body for {BODY_SILENCE_SECONDS:g} s.", code="slow_body"))

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            late = f"The request's head took longer than {HEAD_SECONDS:g} s."
            self._refuse(stopping() if self._last else ApiError(408, late))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Tells the client, unless an answer to it or to an earlier request is being sent, and closes."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.response_started and not self.pipeline:
            cycle.response_complete = cycle.disconnected = True  # the application only learns that the client left
        if cycle is None or cycle.response_complete:
            body = error.body()
            head = f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\nconnection: close\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode("ascii") + body)
        self._close()

    def _close(self) -> None:
        """Once what was written is read, or not for `WRITE_SECONDS`."""
        self.transport.close()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)


def _nothing() -> None: ...
