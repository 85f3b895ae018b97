"""The document that the fuzzer of benchmarks/hostile.py reads still says what the gateway has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from starlette.routing import Route

from twinline.gateway.api_types import ChatRequest, CompletionRequest
from twinline.gateway.app import App
from twinline.gateway.door import Door

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "openapi.yaml").read_text())


def test_it_has_every_public_path() -> None:
    routes = [route for route in App(Door([]))._rest.routes if isinstance(route, Route)]
    ours = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in routes
        if not route.path.startswith("/api/")
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert ours == {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}


def test_its_fields_are_the_gateways() -> None:
    common = set(DOCUMENT["components"]["schemas"]["Common"]["properties"])
    for path, shape in (("/v1/chat/completions", ChatRequest), ("/v1/completions", CompletionRequest)):
        body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        named = common | set(body["allOf"][1]["properties"])
        assert named <= set(shape.__struct_fields__)
