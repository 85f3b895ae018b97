"""What every endpoint shares: the models behind the gateway, its measurements, and the run of one POST.

Owns finding a model by name and turning failures into answers. Must not know any endpoint's fields.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from twinline.gateway.api_types import Common
from twinline.gateway.errors import ApiError, model_not_found, stopping
from twinline.gateway.exchange import CLIENT_LEFT, MAX_BODY_BYTES, Exchange, decode
from twinline.gateway.metrics import Metrics, ModelMeter
from twinline.gateway.served import ServedModel

log = logging.getLogger(__name__)
LOGGED_CHARACTERS = 500  # of a failure's cause
R = TypeVar("R", bound=Common)


class Door:
    """The gateway's models and measurements. Raises ValueError if two models share a name."""

    def __init__(self, models: Sequence[ServedModel], max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.models = tuple(models)
        self.max_body_bytes = max_body_bytes
        self.metrics = Metrics()
        self._by_name: dict[str, ServedModel] = {}
        for served in models:
            if served.name in self._by_name:
                raise ValueError(f"two models are named {served.name}")
            self._by_name[served.name] = served
        self._meters = {served.name: ModelMeter(self.metrics, served.name) for served in models}

    def find(self, name: str) -> ServedModel:
        """Raises ApiError 404."""
        served = self._by_name.get(name)
        if served is None:
            raise model_not_found(name)
        return served

    def meter(self, served: ServedModel) -> ModelMeter:
        return self._meters[served.name]


class Endpoint(Generic[R]):
    """A POST endpoint as an ASGI app: `answer` gets the decoded request and its model.

    What it raises becomes the client's error, and one line in the log.
    """

    def __init__(
        self, name: str, door: Door, shape: type[R], answer: Callable[[Exchange, R, ServedModel], Awaitable[None]]
    ) -> None:
        self._name = name
        self._door = door
        self._decoder = msgspec.json.Decoder(shape)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        metrics = self._door.metrics
        began = time.monotonic()
        status = CLIENT_LEFT
        with metrics.running.labels(self._name).track_inprogress():
            try:
                if await self._run(exchange):
                    status = exchange.status or CLIENT_LEFT
            finally:
                metrics.requests.labels(self._name, str(status)).inc()
                metrics.whole.labels(self._name).observe(time.monotonic() - began)
                if status >= 400:
                    self._log(exchange, status)

    def _log(self, exchange: Exchange, status: int) -> None:
        cause = " ".join((exchange.cause or "the client left").split())[:LOGGED_CHARACTERS]
        level = logging.WARNING if status >= 500 else logging.INFO
        log.log(level, "%s %s %s status=%d: %s", self._name, exchange.request_id, exchange.subject, status, cause)

    async def _run(self, exchange: Exchange) -> bool:
        """False if the client left before the end."""
        try:
            body = await exchange.body(self._door.max_body_bytes)
            return body is not None and await exchange.while_connected(self._respond(exchange, body))
        except ApiError as error:
            await exchange.error(error)
        except asyncio.CancelledError:  # only the end of the server cancels an exchange
            await exchange.error(stopping())
        return True

    async def _respond(self, exchange: Exchange, body: bytes) -> None:
        try:
            request = decode(self._decoder, body)
            exchange.subject = f"model={request.model[:LOGGED_CHARACTERS]!r} line=-"
            served = self._door.find(request.model)
            exchange.subject = f"model={served.name!r} line={served.line.name!r}"
            await self._answer(exchange, request, served)
        except ApiError as error:
            await exchange.error(error)
        except Exception:
            log.exception("%s failed: %s", self._name, exchange.request_id)
            await exchange.error(ApiError(500, "The gateway failed; its log says why.", code="internal_error"))
