"""What both reference gateways do besides moving bytes: check a key, choose among the lines, count usage.

Owns the choice (fewest requests under way) and the counts. Must not know how a line is spoken to. Sixteen lines, the
key and the port come from the environment: LINES (`host:port,...`), KEY, PORT.
"""

from __future__ import annotations

import os
from typing import Any

import orjson

PORT = int(os.environ["PORT"])
AUTHORIZATION = f"Bearer {os.environ['KEY']}".encode()


class Line:
    """One upstream. `idle` holds connections for the gateway that pools its own."""

    def __init__(self, address: str) -> None:
        self.host, _, port = address.partition(":")
        self.port = int(port)
        self.requests = 0
        self.idle: list[Any] = []


LINES = [Line(address) for address in os.environ["LINES"].split(",")]
usage = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}


def choose() -> Line:
    """The line with the fewest requests under way; counts one more there."""
    line = min(LINES, key=lambda one: one.requests)
    line.requests += 1
    return line


def count(answer: bytes) -> None:
    """Meters a whole answer by its usage."""
    told = orjson.loads(answer).get("usage") or {}
    usage["requests"] += 1
    usage["prompt_tokens"] += told.get("prompt_tokens", 0)
    usage["completion_tokens"] += told.get("completion_tokens", 0)
