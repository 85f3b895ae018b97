"""The gateway as an ASGI application: its routes, and OpenAI-shaped answers for what no route takes.

Owns paths and methods. Must not know what an endpoint does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from twinline import __version__
from twinline.gateway.api_types import ChatRequest, CompletionRequest
from twinline.gateway.chat import Chat
from twinline.gateway.completions import Completions
from twinline.gateway.door import Door, Endpoint
from twinline.gateway.errors import ApiError
from twinline.gateway.exchange import MAX_BODY_BYTES
from twinline.gateway.served import ServedModel


def create_app(models: Sequence[ServedModel], *, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """The door to `models`. Raises ValueError if two share a name."""
    door = Door(models, max_body_bytes)
    rest = _Rest(door)
    routes = [
        Route("/v1/chat/completions", Endpoint("chat", door, ChatRequest, Chat(door).answer), methods=["POST"]),
        Route(
            "/v1/completions",
            Endpoint("completions", door, CompletionRequest, Completions(door).answer),
            methods=["POST"],
        ),
        Route("/v1/models", rest.models, methods=["GET"]),
        Route("/v1/models/{name:path}", rest.model, methods=["GET"]),
        Route("/health", rest.health, methods=["GET"]),
        Route("/metrics", rest.metrics, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _failure},
    )
    app.router.redirect_slashes = False
    return app


class _Rest:
    """The endpoints that only tell."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [_entry(served) for served in self._door.models]})

    async def model(self, request: Request) -> Response:
        return _json(_entry(self._door.find(request.path_params["name"])))

    async def health(self, request: Request) -> Response:
        """200 when every model has a line that takes requests."""
        lines = {
            served.name: {"line": served.line.name, "state": str(served.line.state), "reason": served.line.life.reason}
            for served in self._door.models
        }
        well = all(served.line.state.takes_requests for served in self._door.models)
        body = {"status": "ok" if well else "unavailable", "version": __version__, "models": lines}
        return _json(body, 200 if well else 503)

    async def metrics(self, request: Request) -> Response:
        lines = {id(served.line): served.line for served in self._door.models}
        text = await self._door.metrics.text(lines.values())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _entry(served: ServedModel) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "twinline",
        "max_model_len": served.max_model_len,
    }
    return entry if served.label is None else entry | {"label": served.label}


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        told = ApiError(404, f"There is no {where}.", code="unknown_path")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        told = ApiError(
            405, f"{where} is not allowed; use {allowed}.", code="method_not_allowed", headers=error.headers
        )
    else:
        told = ApiError(error.status_code, error.detail, headers=error.headers)
    return await _api_error(request, told)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(error.body(), error.status, error.headers, media_type="application/json")


async def _failure(request: Request, error: Exception) -> Response:
    told = ApiError(500, "The gateway failed; its log says why.", code="internal_error")
    return await _api_error(request, told)
