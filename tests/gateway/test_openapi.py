"""The OpenAPI document says what is true: of every route, of what requests are read as, and of what answers are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.routing import Route
from tests.gateway.harness import Gateway

from twinline.gateway.access import Access
from twinline.gateway.app import App
from twinline.gateway.documented import ChatAnswer, ChatChunk, CompletionAnswer, CompletionChunk, Error, Health, Models
from twinline.gateway.documented import Model as OneModel
from twinline.gateway.door import Door
from twinline.gateway.openapi import OPERATIONS, document
from twinline.store.database import Database
from twinline.store.keys import Keys
from twinline.store.ring import KeyRing

OPEN = {"/health", "/openapi.json"}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "$ref")
        yield from (found for value in node.values() for found in references(value))
    elif isinstance(node, list):
        yield from (found for value in node for found in references(value))


def test_it_is_of_every_route_and_of_nothing_else(door: Gateway) -> None:
    app = App(Door([]), control="http://127.0.0.1:9")
    told = json.loads(app._document)
    routed = {
        (method, route.path.replace(":path}", "}"))
        for route in app._rest.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routed == set(OPERATIONS)
    assert {(method.upper(), path) for path, methods in told["paths"].items() for method in methods} == routed
    schemas = told["components"]["schemas"]
    assert {ref.rpartition("/")[2] for ref in references(told)} <= set(schemas)
    assert not [name for name in schemas if "." in name], "two types share a name"
    served = door.client.get("/openapi.json")
    assert served.headers["content-type"] == "application/json" and served.json()["openapi"] == "3.1.0"
    assert {path for path in told["paths"] if not path.startswith("/api/")} < set(served.json()["paths"])


def test_a_route_that_is_not_described_cannot_be_served() -> None:
    with pytest.raises(KeyError):
        document([Route("/secret", lambda request: None, methods=["GET"])], needs_key=False)


def test_requests_are_read_as_it_says() -> None:
    app = App(Door([]))
    for path, endpoint in app._hot.items():
        assert OPERATIONS["POST", path].request is endpoint.shape
    read = {path for (method, path), told in OPERATIONS.items() if told.request is not None}
    assert set(app._hot) == {path for path in read if not path.startswith("/api/")}


def test_a_key_is_asked_for_where_one_is_needed(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    closed = json.loads(App(Door([], access=Access(KeyRing(Keys(database)))))._document)
    for path, methods in closed["paths"].items():
        assert all(("security" in told) == (path not in OPEN) for told in methods.values())
    opened = json.loads(App(Door([]))._document)
    assert {path for path, methods in opened["paths"].items() if "security" in next(iter(methods.values()))} == {
        "/api/lines", "/api/metrics"
    }  # fmt: skip


def exactly(body: str | bytes, shape: Any) -> None:
    """The body is of that type, and has nothing that the type does not name."""
    assert json.loads(msgspec.json.encode(msgspec.json.decode(body, type=shape))) == json.loads(body)


def test_answers_are_what_it_says(door: Gateway) -> None:
    door.says("Hm</think>yes 你")
    exactly(door.chat(logprobs=True, top_logprobs=2, n=2).content, ChatAnswer)
    exactly(door.chat(prompt_logprobs=1).content, ChatAnswer)
    exactly(door.complete(logprobs=1, echo=True, return_token_ids=True).content, CompletionAnswer)
    exactly(door.complete(prompt_logprobs=1).content, CompletionAnswer)
    for ask, shape in ((door.chat, ChatChunk), (door.complete, CompletionChunk)):
        for options in (None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
            *events, done, rest = ask(stream=True, stream_options=options).text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "") and len(events) > 2
            for event in events:
                exactly(event.removeprefix("data: "), shape)
    exactly(door.client.get("/v1/models").content, Models)
    exactly(door.client.get("/v1/models/tiny-r1").content, OneModel)
    exactly(door.client.get("/health").content, Health)
    for response in (door.chat(n=0), door.chat(model="x"), door.client.get("/nothing"), door.client.put("/health")):
        assert response.status_code >= 400
        exactly(response.content, Error)
