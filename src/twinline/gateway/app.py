"""The gateway as an ASGI application: its routes, and OpenAI-shaped answers for what no route takes.

Owns paths and methods. Must not know what an endpoint does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from twinline import __version__
from twinline.gateway.api_types import ChatRequest, CompletionRequest
from twinline.gateway.chat import Chat
from twinline.gateway.completions import Completions
from twinline.gateway.dialects.messages import Messages
from twinline.gateway.dialects.messages_out import MessagesWording
from twinline.gateway.dialects.messages_types import MessagesRequest, PromptRequest
from twinline.gateway.dialects.responses import Responses
from twinline.gateway.dialects.responses_out import ResponsesWording
from twinline.gateway.dialects.responses_types import ResponsesRequest
from twinline.gateway.door import Door
from twinline.gateway.embeddings import Embeddings, EmbeddingsRequest
from twinline.gateway.endpoint import Caller, Endpoint
from twinline.gateway.errors import OPENAI, ApiError, internal, model_not_found
from twinline.gateway.gauges import line_up
from twinline.gateway.management import Management
from twinline.gateway.openapi import document
from twinline.gateway.pages import of_this_machine
from twinline.gateway.passed import metrics_text, of_all
from twinline.gateway.served import ServedModel
from twinline.gateway.supply import Supply
from twinline.gateway.tokens import DetokenizeRequest, TokenizeRequest, Tokens
from twinline.lines.client import LineClient
from twinline.lines.state import LineState
from twinline.store.keys import Key

MESSAGES = MessagesWording()


class App:
    """The gateway as an ASGI application. The two paths that matter are looked up; the rest is Starlette's."""

    def __init__(
        self,
        door: Door,
        *,
        index: int = 0,
        siblings: Sequence[str] = (),
        control: str | None = None,
        generation: Callable[[], int] = lambda: 0,
        trusted: bool = False,
        leave: Callable[[], None] | None = None,
    ) -> None:
        """`siblings` are the Unix sockets of the other gateways of a fleet, `control` its control side's. `trusted`:
        whoever can reach it may manage it, and needs no key. `leave` is what `POST /api/leave` does: a door for the
        control side, in no document."""
        self.door = door
        chat = Chat(door)
        messages, tokens = Messages(door, chat), Tokens(door)
        self._hot: dict[str, Endpoint[Any]] = {
            "/v1/chat/completions": Endpoint("chat", door, ChatRequest, chat.answer, differs_in="messages"),
            "/v1/completions": Endpoint(
                "completions", door, CompletionRequest, Completions(door).answer, differs_in="prompt"
            ),
            "/v1/embeddings": Endpoint("embeddings", door, EmbeddingsRequest, Embeddings(door).answer),
            "/tokenize": Endpoint("tokenize", door, TokenizeRequest, tokens.tokenize),
            "/detokenize": Endpoint("detokenize", door, DetokenizeRequest, tokens.detokenize),
            "/v1/responses": Endpoint("responses", door, ResponsesRequest, Responses(chat).answer, ResponsesWording()),
            "/v1/messages": Endpoint("messages", door, MessagesRequest, messages.answer, MESSAGES),
            "/v1/messages/count_tokens": Endpoint("count_tokens", door, PromptRequest, messages.count, MESSAGES),
        }
        rest = _Rest(door, index, siblings, trusted)
        routes = [
            *(Route(path, app, methods=["POST"]) for path, app in self._hot.items()),
            Route("/v1/models", rest.models, methods=["GET"]),
            Route("/v1/models/{name:path}", rest.model, methods=["GET"]),
            Route("/health", rest.health, methods=["GET"]),
            Route("/metrics", rest.metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            *Management(door, trusted, control, generation).routes(),
        ]
        self._rest = Starlette(
            routes=routes if leave is None else [*routes, Route("/api/leave", _leaves(leave), methods=["POST"])],
            exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _failure},
        )
        self._rest.router.redirect_slashes = False
        self._document = document(routes, needs_key=door.access.needs_key and not trusted)

    async def _openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    def at_once(self, scope: Scope, cycle: RequestResponseCycle, body: bytes, caller: object) -> object:
        """Runs a POST without a task, if that can be (`Endpoint.at_once`)."""
        if isinstance(caller, Caller):
            return caller.endpoint.at_once(scope, cycle, body, caller)
        hot = self._hot.get(scope["path"])
        return None if hot is None else hot.at_once(scope, cycle, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hot = self._hot.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (hot or self._rest)(scope, receive, send)


class _Rest:
    """The endpoints that only tell."""

    def __init__(self, door: Door, index: int, siblings: Sequence[str], trusted: bool) -> None:
        self._door = door
        self._index = index
        self._siblings = [LineClient(url) for url in siblings]
        self._trusted = trusted

    def _key(self, request: Request) -> Key | None:
        """Raises ApiError 401, or 403."""
        return None if self._trusted else self._door.access.key_of(request.headers)

    def _near(self, request: Request) -> bool:
        if self._trusted:
            return True
        known = of_this_machine(request.headers.get("host"))
        return known and request.client is not None and _loopback(request.client.host)

    def _may_look(self, request: Request) -> bool:
        if self._near(request):
            return True
        try:
            self._key(request)
        except ApiError:
            return False
        return True

    async def models(self, request: Request) -> Response:
        key = self._key(request)
        shown = [served for served in self._door.models if key is None or key.allows(served.name)]
        return _json({"object": "list", "data": [_entry(served) for served in shown]})

    async def model(self, request: Request) -> Response:
        key = self._key(request)
        name = request.path_params["name"]
        served = self._door.find(name).served
        if key is not None and not key.allows(served.name):
            raise model_not_found(name)  # as in the list, it is not there for this key
        return _json(_entry(served))

    async def health(self, request: Request) -> Response:
        """200 when every model has a line that may be asked; `degraded` when some of its lines may not.

        Models and lines are told to those who are on this machine or have a key, to others whether all is well.
        """
        models = {}
        status = "ok"
        for served in self._door.models:
            supply = served.supply
            up = [line for line in supply.lines.values() if line_up(supply, line)]
            models[served.name] = {"status": "ok" if up else "unavailable", "lines": told(supply)}
            less = len(up) < len(supply.lines) or any(line.state is LineState.DEGRADED for line in up)
            if not up:
                status = "unavailable"
            elif status == "ok" and less:
                status = "degraded"
        body: dict[str, Any] = {"status": status}
        if self._may_look(request):
            body |= {"version": __version__, "models": models}
        return _json(body, 503 if status == "unavailable" else 200)

    async def metrics(self, request: Request) -> Response:
        """Of all gateways of the fleet, whichever was asked; `?own=1` of this one alone."""
        if not self._near(request):
            self._key(request)
        text = await metrics_text(self._door.meters, self._door.models)
        if self._siblings and "own" not in request.query_params:
            text = await of_all(self._index, text, self._siblings)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _leaves(leave: Callable[[], None]) -> Callable[[Request], Awaitable[Response]]:
    async def left(request: Request) -> Response:
        leave()
        return _json({})

    return left


def _entry(served: ServedModel) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "twinline",
        "max_model_len": served.max_model_len,
        "capabilities": {
            "chat": served.chats,
            "completions": not served.embeds,
            "embeddings": served.embeds,
        },
    }
    return entry if served.label is None else entry | {"label": served.label}


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def told(supply: Supply) -> dict[str, dict[str, str]]:
    """Each line's state and the reason for it; one that is not asked because of its own faults is `unavailable`."""
    lines = {}
    for name, line in supply.lines.items():
        circuit = supply.circuits[name]
        if line.state.takes_requests and not circuit.closed:
            lines[name] = {"state": "unavailable", "reason": circuit.reason}
        else:
            lines[name] = {"state": str(line.state), "reason": line.life.reason}
    return lines


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.scope['path']}"  # `url` would be made with the Host header
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
    wording = MESSAGES if request.scope["path"].startswith("/v1/messages") else OPENAI
    return Response(wording.body(error, None), error.status, error.headers, media_type="application/json")


async def _failure(request: Request, error: Exception) -> Response:
    told = internal()
    return await _api_error(request, told)
