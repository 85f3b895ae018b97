"""`/api`: what a gateway knows of its lines, and the control side's own doors, for those who manage a fleet.

Owns the paths and who may use them: whoever reaches the process's Unix socket, or bears the management key. Must not
know how anything is done: what changes a fleet is the control side's, and is only handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from twinline.gateway.door import Door
from twinline.gateway.errors import ApiError
from twinline.gateway.gauges import line_up
from twinline.gateway.passed import own_text
from twinline.gateway.supply import Supply
from twinline.lines.client import LineClient
from twinline.lines.protocol import LineError

CONTROL_SECONDS = 30.0
LONGEST_BODY_BYTES = 1 << 20
HANDED_ON = {"state": "GET", "apply": "POST", "drain": "POST", "resume": "POST"}


class Management:
    """The routes. `control` is the control side's address, None where there is none."""

    def __init__(self, door: Door, trusted: bool, control: str | None, generation: Callable[[], int]) -> None:
        self._door = door
        self._trusted = trusted
        self._control = None if control is None else LineClient(control)
        self._generation = generation

    def routes(self) -> list[Route]:
        routes = [
            Route("/api/lines", self._lines, methods=["GET"]),
            Route("/api/metrics", self._metrics, methods=["GET"]),
        ]
        if self._control is not None:
            routes += [Route(f"/api/{name}", self._hand_on, methods=[method]) for name, method in HANDED_ON.items()]
        return routes

    def _check(self, request: Request) -> None:
        if not self._trusted:
            self._door.access.manages({name.decode(): value.decode("latin-1") for name, value in request.headers.raw})

    async def _lines(self, request: Request) -> Response:
        self._check(request)
        lines = [told for served in self._door.models for told in told_by(served.supply)]
        return _json({"generation": self._generation(), "lines": lines})

    async def _metrics(self, request: Request) -> Response:
        """Of this gateway alone, without what the lines say of themselves: its siblings ask for it."""
        self._check(request)
        text = own_text(self._door.meters, self._door.models)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _hand_on(self, request: Request) -> Response:
        self._check(request)
        assert self._control is not None
        path = request.scope["path"].removeprefix(
            "/api"
        )  # one of `HANDED_ON`; `url` would be made with the Host header
        query = request.scope["query_string"].decode("latin-1")
        asked = f"{path}?{query}" if query else path
        try:
            status, body = await self._control.ask(request.method, asked, await _body(request), CONTROL_SECONDS)
        except LineError as error:
            raise ApiError(503, f"The control side does not answer: {error}.", code="no_control") from error
        return Response(body, status, media_type="application/json")


def told_by(supply: Supply) -> list[dict[str, Any]]:
    """What this gateway has seen of each line of a model."""
    lines = []
    for name, line in supply.lines.items():
        circuit = supply.circuits[name]
        learned = supply.router.station(name).snapshot()
        lines.append(
            {
                "name": name,
                "model": supply.model,
                "state": str(line.state),
                "ready": line_up(supply, line),
                "full": line_up(supply, line) and name not in supply.ready,
                "circuit": str(circuit.state),
                "circuit_reason": circuit.reason or None,
                "in_flight": len(line.calls),
                **{field: value for field, value in learned.items() if field not in ("name", "line", "in_flight")},
            }
        )
    return lines


async def _body(request: Request) -> bytes:
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > LONGEST_BODY_BYTES:
            told = f"The body is longer than {LONGEST_BODY_BYTES} bytes."
            raise ApiError(413, told, code="body_too_large", headers={"connection": "close"})
        parts.append(part)
    return b"".join(parts)


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
