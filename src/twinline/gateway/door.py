"""What every endpoint shares: the models behind the gateway, who may ask, and the run of one POST.

Owns finding a model by name and turning failures into answers. Must not know any endpoint's fields.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar, cast

import msgspec
from starlette.types import Receive, Scope, Send

from twinline.gateway.access import Access, Visit
from twinline.gateway.errors import OPENAI, ApiError, Wording, bad_request, model_not_found, stopping
from twinline.gateway.exchange import CLIENT_LEFT, MAX_BODY_BYTES, MAX_HELD_BYTES, Exchange, Held, decode
from twinline.gateway.meters import Meters
from twinline.gateway.served import ServedModel

log = logging.getLogger(__name__)
LOGGED_CHARACTERS = 500  # of a failure's cause
R = TypeVar("R")


class Named(Protocol):
    """A request that names its model; one without a name means the only one."""

    @property
    def model(self) -> str | None: ...


class Target:
    """The model that a request names, and the line if it names one: `model@line`."""

    __slots__ = ("line", "served")

    def __init__(self, served: ServedModel, line: str | None) -> None:
        self.served, self.line = served, line


class Door:
    """The gateway's models, its checks and its measurements. Models come and go while it is open."""

    def __init__(
        self,
        models: Iterable[ServedModel] = (),
        access: Access | None = None,
        meters: Meters | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """Raises ValueError if two models share a name."""
        self.access = access or Access()
        self.meters = meters or Meters()
        self.max_body_bytes = max_body_bytes
        self.held = Held(max(MAX_HELD_BYTES, 2 * max_body_bytes))
        self._by_name: dict[str, ServedModel] = {}
        for served in models:
            self.open(served)

    @property
    def models(self) -> list[ServedModel]:
        return list(self._by_name.values())

    def open(self, served: ServedModel) -> None:
        if served.name in self._by_name:
            raise ValueError(f"two models are named {served.name}")
        self._by_name[served.name] = served

    def shut(self, name: str) -> None:
        """Requests under way go on."""
        self._by_name.pop(name, None)

    def find(self, name: str | None) -> Target:
        """None means the only model. Raises ApiError 404, or 400 where there are several."""
        served = self._by_name.get(name)  # type: ignore[arg-type]
        if served is not None:
            return Target(served, None)
        if name is None:
            if len(self._by_name) != 1:
                told = f"The request names no model, and there are {len(self._by_name)}: set `model` (/v1/models)."
                raise bad_request(told, "model")
            return Target(next(iter(self._by_name.values())), None)
        model, at, line = name.rpartition("@")
        served = self._by_name.get(model) if at else None
        if served is None:
            raise model_not_found(name)
        return Target(served, line)


class Endpoint(Generic[R]):
    """A POST endpoint as an ASGI app: `answer` gets the decoded request and its model.

    What it raises becomes the client's error, and one line in the log.
    """

    def __init__(
        self,
        name: str,
        door: Door,
        shape: type[R],
        answer: Callable[[Exchange, Visit, R, Target, bytes], Awaitable[None]],
        wording: Wording = OPENAI,
    ) -> None:
        self._name = name
        self._door = door
        self.shape = shape
        self._decoder = msgspec.json.Decoder(shape)
        self._answer = answer
        self.wording = wording
        self._running = door.meters.running.labels(name)
        self._whole = door.meters.whole.labels(name)
        self._counts: dict[int, Callable[[], None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, self.wording)
        began = time.monotonic()
        self._running.inc()
        try:
            await self._run(exchange)
        except ApiError as error:
            exchange.error(error)
        except asyncio.CancelledError:  # only the end of the server cancels an exchange
            exchange.error(stopping())
            exchange.stop()
        except Exception:
            log.exception("%s failed: %s", self._name, exchange.request_id)
            exchange.error(ApiError(500, "The gateway failed; its log says why.", code="internal_error"))
        finally:
            self._running.dec()
            exchange.release()
            seconds = time.monotonic() - began
            self._whole.observe(seconds)
            # 499: the client left before the end
            status = CLIENT_LEFT if exchange.gone and exchange.cause is None else exchange.status or CLIENT_LEFT
            self._count(status)
            if status >= 400:
                self._log(exchange, status)

    async def _run(self, exchange: Exchange) -> None:
        visit = self._door.access.enter(exchange)
        body = await exchange.body(self._door.max_body_bytes, self._door.held)
        if body is None:
            exchange.gone = True
            return
        request = decode(self._decoder, body)
        model = cast(Named, request).model
        exchange.model = model or "-"
        target = self._door.find(model)
        self._door.access.allow(visit, target.served.name)
        try:
            await self._answer(exchange, visit, request, target, body)
        except asyncio.CancelledError:
            if exchange.error(stopping()) and exchange.reason is not None:
                target.served.supply.meter.refused(exchange.reason)
            raise

    def _count(self, status: int) -> None:
        count = self._counts.get(status)
        if count is None:
            count = self._counts[status] = self._door.meters.requests.labels(self._name, str(status)).inc
        count()

    def _log(self, exchange: Exchange, status: int) -> None:
        cause = " ".join((exchange.cause or "the client left").split())[:LOGGED_CHARACTERS]
        cause = "".join(each if each.isprintable() else "?" for each in cause)  # a line's words, or a client's
        level = logging.WARNING if status >= 500 else logging.INFO
        subject = " ".join(
            f"{name}={text if text == '-' else repr(text[:LOGGED_CHARACTERS])}"
            for name, text in (("model", exchange.model), ("line", exchange.lines))
        )
        log.log(level, "%s %s %s status=%d: %s", self._name, exchange.request_id, subject, status, cause)
