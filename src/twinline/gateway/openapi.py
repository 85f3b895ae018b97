"""The OpenAPI document of a gateway, made from its routes and from the types that read requests and name answers.

Owns what is said of each route beyond its types. Must not know how a route answers. A route that is not described here
cannot be served: the document is made of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from twinline import __version__
from twinline.gateway import api_types
from twinline.gateway.dialects import messages_types, responses_types
from twinline.gateway.documented import (
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    CompletionChunk,
    EmbeddingsAnswer,
    Error,
    Health,
    Lines,
    Model,
    Models,
)
from twinline.gateway.embeddings import EmbeddingsRequest
from twinline.gateway.tokens import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest

_REFS = "#/components/schemas/{name}"
_OBJECT = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One method of one path. `answer` None is plain text; `events` says what a stream is made of, `chunk` of what each
    event is. `also` are statuses with the same answer. `key`: whether one may be needed."""

    summary: str
    request: Any = None
    answer: Any = None
    error: Any = Error
    events: str | None = None
    chunk: Any = None
    also: tuple[int, ...] = ()
    key: bool = True
    query: Mapping[str, str] | None = None


_DONE = "Server-sent events without a name, each of one chunk, then `[DONE]`; one that breaks off ends with an error."
_MANAGED = "For those who manage the fleet: "
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "Answers a chat, whole or streamed", api_types.ChatRequest, ChatAnswer, events=_DONE, chunk=ChatChunk
    ),
    ("POST", "/v1/completions"): Operation(
        "Completes texts, whole or streamed",
        api_types.CompletionRequest,
        CompletionAnswer,
        events=_DONE,
        chunk=CompletionChunk,
    ),
    ("POST", "/v1/responses"): Operation(
        "Answers in the shape of OpenAI's Responses API; nothing is stored",
        responses_types.ResponsesRequest,
        responses_types.ResponseOut,
        events="Server-sent events with names, from `response.created` to `response.completed` or "
        "`response.incomplete`; one that breaks off ends with `response.failed` and `error`.",
    ),
    ("POST", "/v1/messages"): Operation(
        "Answers in the shape of Anthropic's Messages API",
        messages_types.MessagesRequest,
        messages_types.MessageOut,
        messages_types.ErrorOut,
        events="Server-sent events with names, from `message_start` to `message_stop`; one that breaks off ends with "
        "`error`.",
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Tokens of a prompt in the shape of Anthropic's Messages API",
        messages_types.PromptRequest,
        messages_types.TokenCount,
        messages_types.ErrorOut,
    ),
    ("POST", "/v1/embeddings"): Operation("Vectors of texts", EmbeddingsRequest, EmbeddingsAnswer),
    ("POST", "/tokenize"): Operation("A text or a chat as token ids", TokenizeRequest, TokenizeAnswer),
    ("POST", "/detokenize"): Operation("Token ids as text", DetokenizeRequest, DetokenizeAnswer),
    ("GET", "/v1/models"): Operation("The models that the key may use", answer=Models),
    ("GET", "/v1/models/{name}"): Operation("One model", answer=Model),
    ("GET", "/health"): Operation(
        "200 when every model has a line that may be asked", answer=Health, also=(503,), key=False
    ),
    ("GET", "/metrics"): Operation(
        "Prometheus' text format", query={"own": "of this gateway alone, not of its fleet's others"}
    ),
    ("GET", "/openapi.json"): Operation("This document", answer=_OBJECT, key=False),
    ("GET", "/api/lines"): Operation(_MANAGED + "what this gateway has seen of its lines", answer=Lines),
    ("GET", "/api/metrics"): Operation(_MANAGED + "this gateway's own metrics"),
    ("GET", "/api/state"): Operation(_MANAGED + "the fleet as its control side sees it", answer=_OBJECT),
    ("POST", "/api/apply"): Operation(_MANAGED + "makes the fleet what a file says", _OBJECT, _OBJECT),
    ("POST", "/api/drain"): Operation(_MANAGED + "takes a line out of service", _OBJECT, _OBJECT),
    ("POST", "/api/resume"): Operation(_MANAGED + "puts a drained line into service", _OBJECT, _OBJECT),
}


def document(routes: Iterable[BaseRoute], *, needs_key: bool) -> bytes:
    """OpenAPI 3.1 as JSON. Raises KeyError for a route that is not described."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        assert isinstance(route, Route)
        path = route.path.replace(":path}", "}")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _told(path, OPERATIONS[method, path], needs_key)
    schemas, _ = _schemas()
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Twinline",
            "version": __version__,
            "description": "One name per model over many unlike lines. Fields that have no effect are named in the "
            "header `warning` of the answer; those that would change an answer and cannot are refused.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    return msgspec.json.encode(whole)


def _told(path: str, operation: Operation, needs_key: bool) -> dict[str, Any]:
    _, refs = _schemas()

    def content(shape: Any) -> dict[str, Any]:
        if shape is None:
            return {"text/plain": {"schema": {"type": "string"}}}
        return {"application/json": {"schema": refs[shape]}}

    def event(operation: Operation) -> dict[str, Any]:
        """One event of a stream, as OpenAPI 3.2 means it by `itemSchema`."""
        told: dict[str, Any] = {"type": "string", "contentMediaType": "application/json"}
        data: dict[str, Any] = told
        if operation.chunk is not None:
            parts = [told | {"contentSchema": refs[shape]} for shape in (operation.chunk, operation.error)]
            data = {"anyOf": [{"const": "[DONE]"}, *parts]}
        properties = {"event": {"type": "string"}, "data": data}
        return {"type": "object", "description": operation.events, "properties": properties, "required": ["data"]}

    answers = content(operation.answer)
    if operation.events is not None:
        answers = answers | {"text/event-stream": {"schema": event(operation)}}
    responses: dict[str, Any] = {
        str(status): {"description": operation.summary, "content": answers} for status in (200, *operation.also)
    }
    if operation.request is not None and operation.answer is not _OBJECT:
        header = {"description": "fields of the request that had no effect", "schema": {"type": "string"}}
        responses["200"]["headers"] = {"warning": header}
    responses["default"] = {"description": "what went wrong", "content": content(operation.error)}
    told: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.request is not None:
        told["requestBody"] = {"required": True, "content": content(operation.request)}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in (operation.query or {}).items()
    ]
    if "{name}" in path:
        parameters.append({"name": "name", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        told["parameters"] = parameters
    managed = path.startswith("/api/")
    if operation.key and (needs_key or managed):
        told["security"] = [{"bearer": []}, {"x-api-key": []}]
    return told


@cache
def _schemas() -> tuple[dict[str, Any], dict[Any, Any]]:
    """All components by name, and the reference to each type that an operation names."""
    shapes: dict[Any, None] = {}
    for operation in OPERATIONS.values():
        for shape in (operation.request, operation.answer, operation.error, operation.chunk):
            if shape is not None:
                shapes[shape] = None
    refs, components = msgspec.json.schema_components(list(shapes), ref_template=_REFS)
    found = dict(zip(shapes, refs, strict=True))
    for shape, fields in _FIELDS:
        properties = components[found[shape]["$ref"].rpartition("/")[2]]["properties"]
        for names, text in fields:
            for name in names:
                properties[name] = properties[name] | {"description": text}
    return components, found


_IGNORED = "Has no effect: the answer's header `warning` names it."
_REFUSED = "Refused, unless its value asks for nothing."
_FIELDS: tuple[tuple[Any, tuple[tuple[Iterable[str], str], ...]], ...] = (
    (api_types.ChatRequest, ((api_types.IGNORED, _IGNORED), (api_types.NOT_SUPPORTED, _REFUSED))),
    (api_types.CompletionRequest, ((api_types.IGNORED, _IGNORED), (api_types.NOT_SUPPORTED, _REFUSED))),
    (
        responses_types.ResponsesRequest,
        ((responses_types.IGNORED, _IGNORED), ([*responses_types.NOT_SUPPORTED, "previous_response_id"], _REFUSED)),
    ),
    (
        messages_types.MessagesRequest,
        ((messages_types.IGNORED, _IGNORED), (messages_types.NOT_SUPPORTED, _REFUSED)),
    ),
)
