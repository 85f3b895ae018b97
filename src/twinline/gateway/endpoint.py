"""One POST endpoint as an ASGI app: from a request's head to the record of how it went.

Owns the run of a request, with a task or without, and turning failures into answers. Must not know any endpoint's
fields.

A request whose form is known (`forms.py`) and for which nothing has to be waited for, neither a body nor a lease of its
key's limits, needs no task: all that is left until its answer are callbacks. That is the way of nearly every request of
a busy gateway. Where anything is unusual it is not taken, and nothing has happened then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from twinline.gateway.access import Visit
from twinline.gateway.answer import Answer
from twinline.gateway.aside import LONG_BODY_BYTES
from twinline.gateway.door import Door, Target
from twinline.gateway.errors import OPENAI, ApiError, Wording, internal, stopping
from twinline.gateway.exchange import CLIENT_LEFT, Exchange, decode, headers_of
from twinline.gateway.forms import Asked, Form, Forms
from twinline.gateway.meters import ModelMeter
from twinline.gateway.order import Order
from twinline.gateway.sampling import TIMEOUT_HEADER
from twinline.store.keys import Key

log = logging.getLogger(__name__)
LOGGED_CHARACTERS = 500  # of a failure's cause
_SLOW_HEADERS = frozenset({TIMEOUT_HEADER.encode(), b"content-encoding"})  # they change what a request comes to
R = TypeVar("R")


class Named(Protocol):
    """A request that names its model; one without a name means the only one."""

    @property
    def model(self) -> str | None: ...


class Caller:
    """What a request's head says, but for what it says of the body."""

    __slots__ = ("endpoint", "headers", "key")

    def __init__(self, endpoint: Endpoint[Any], headers: dict[bytes, bytes], key: Key | None) -> None:
        self.endpoint, self.headers, self.key = endpoint, headers, key


class Endpoint(Generic[R]):
    """`answer` gets the decoded request and its model, and may return the form of further ones. What it raises becomes
    the client's error, and one line in the log."""

    def __init__(
        self,
        name: str,
        door: Door,
        shape: type[R],
        answer: Callable[[Exchange, Visit, R, Target, bytes], Awaitable[Form[Any] | None]],
        wording: Wording = OPENAI,
        differs_in: str | None = None,
    ) -> None:
        """`differs_in`: the field that requests of one form differ in; None: they have no forms."""
        self._name = name
        self._door = door
        self.shape = shape
        self._decoder = msgspec.json.Decoder(shape)
        self._answer = answer
        self.wording = wording
        self._forms = None if differs_in is None else Forms(differs_in)
        if self._forms is not None:
            door.on_shut.append(self._forms.forget)
        self._running = door.meters.running.labels(name)
        self._whole = door.meters.whole.labels(name)
        self._counts: dict[int, Callable[[], None]] = {}

    # With a task.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, self.wording)
        began = time.monotonic()
        self.began()
        try:
            await self._run(exchange)
        except ApiError as error:
            exchange.error(error)
        except asyncio.CancelledError:  # only the end of the server cancels an exchange
            exchange.error(stopping())
            exchange.stop()
        except Exception:
            self.failed(exchange)
        finally:
            exchange.release()
            self.over(exchange, began)

    async def _run(self, exchange: Exchange) -> None:
        visit = self._door.access.enter(exchange)
        body = await exchange.body(self._door.max_body_bytes, self._door.held)
        if body is None:
            exchange.left()
            return
        coding = exchange.header("content-encoding") or "identity"
        if coding.lower() != "identity":
            raise ApiError(415, f"A body in the coding {coding} is not read here: send it as it is.")
        request = decode(self._decoder, body)
        model = cast(Named, request).model
        exchange.model = model or "-"
        target = self._door.find(model)
        self._door.access.allow(visit, target.served.name)
        try:
            form = await self._answer(exchange, visit, request, target, body)
        except asyncio.CancelledError:
            if exchange.error(stopping()) and exchange.reason is not None:
                target.served.supply.meter.refused(exchange.reason)
            raise
        if form is not None and exchange.status == 200 and self._forms is not None:
            self._forms.keep(body, form)

    # Without.

    def at_once(
        self, scope: Scope, cycle: RequestResponseCycle, body: bytes, caller: Caller | None = None
    ) -> Caller | None:
        """Runs the request of `cycle` if it is of a known form and nothing must be waited for; else None. `caller` is
        who asked with the same head before."""
        if self._forms is None or len(body) >= LONG_BODY_BYTES or cycle.disconnected:
            return None
        found = self._forms.find(body)
        if found is None:
            return None
        form, part = found
        access = self._door.access
        served = form.target.served
        if not self._door.serves(served):
            return None
        if caller is None or not access.knows(caller.key):
            caller = self._caller(headers_of(scope))
        if caller is None or (caller.key is not None and not caller.key.allows(served.name)):
            return None
        asked = form.read(part)
        if asked is None:
            return None
        visit = Visit(caller.key, time.time())
        exchange = Exchange(scope, cast(Receive, cycle.receive), self.wording, caller.headers)
        order = Order(
            form.target, visit, form.plan(asked, exchange.request_id), body, chat=form.chat, bounded=form.bounded
        )
        if not order.admit_at_once(access, len(asked.prompt), 1):
            exchange.hand_back(scope)
            return None
        exchange.body_bytes = len(body)
        exchange.model = form.request.model
        access.observe(exchange, visit)
        _AtOnce(self, exchange, served.supply.meter).begin(visit, form, asked, order)
        return caller

    def _caller(self, headers: dict[bytes, bytes]) -> Caller | None:
        if not _SLOW_HEADERS.isdisjoint(headers):
            return None
        try:
            return Caller(self, headers, self._door.access.key_in(headers))
        except ApiError:
            return None

    # Both.

    def began(self) -> None:
        self._running.inc()

    def answer_of(self, exchange: Exchange, visit: Visit, form: Form[Any], asked: Asked) -> Answer:
        shape = form.shape(asked, exchange.request_id)
        return Answer(exchange, self._door.access, visit, form.target.served.name, shape, form.streamed)

    def failed(self, exchange: Exchange) -> None:
        log.exception("%s failed: %s", self._name, exchange.request_id)
        exchange.error(internal())

    def over(self, exchange: Exchange, began: float) -> None:
        self._running.dec()
        self._whole.observe(time.monotonic() - began)
        # 499: the client left before the end
        status = CLIENT_LEFT if exchange.gone and exchange.cause is None else exchange.status or CLIENT_LEFT
        count = self._counts.get(status)
        if count is None:
            count = self._counts[status] = self._door.meters.requests.labels(self._name, str(status)).inc
        count()
        if status >= 400:
            self._log(exchange, status)

    def _log(self, exchange: Exchange, status: int) -> None:
        cause = " ".join((exchange.cause or "the client left").split())[:LOGGED_CHARACTERS]
        cause = "".join(each if each.isprintable() else "?" for each in cause)  # a line's words, or a client's
        level = logging.WARNING if status >= 500 else logging.INFO
        subject = " ".join(
            f"{name}={text if text == '-' else repr(text[:LOGGED_CHARACTERS])}"
            for name, text in (("model", exchange.model), ("line", exchange.lines))
        )
        log.log(level, "%s %s %s status=%d: %s", self._name, exchange.request_id, subject, status, cause)


class _AtOnce:
    """The life of a request without a task."""

    __slots__ = ("_answer", "_began", "_endpoint", "_exchange", "_meter")

    def __init__(self, endpoint: Endpoint[Any], exchange: Exchange, meter: ModelMeter) -> None:
        self._endpoint, self._exchange, self._meter = endpoint, exchange, meter
        self._answer: Answer | None = None
        self._began = time.monotonic()

    def begin(self, visit: Visit, form: Form[Any], asked: Asked, order: Order) -> None:
        exchange, endpoint = self._exchange, self._endpoint
        endpoint.began()
        exchange.without_task(self)
        try:
            answer = self._answer = endpoint.answer_of(exchange, visit, form, asked)
            exchange.head_lines(form.told)
            choice = order.choice(asked.prompt, order.ask(asked.prompt), 0, 0, asked.reasoning, answer)
            answer.begin([choice])
        except ApiError as error:
            exchange.error(error)
        except Exception:
            self.break_off()
            endpoint.failed(exchange)

    # What the exchange calls.

    def over(self) -> None:
        """The last byte was handed over, or the client left."""
        self.break_off()
        self._endpoint.over(self._exchange, self._began)

    def cut_off(self) -> None:
        """The server ends and waits no longer."""
        exchange = self._exchange
        self.break_off()
        if exchange.error(stopping()) and exchange.reason is not None:
            self._meter.refused(exchange.reason)
        exchange.stop()

    def break_off(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.release()
