"""Reads an OpenAI endpoint's error for a person. Knows its shape only; imports nothing heavy."""

from __future__ import annotations

import json

LONGEST = 300


def error_text(body: bytes) -> str:
    """The message in an error response's body, or the body itself where it is not JSON."""
    try:
        return message_of(json.loads(body))
    except ValueError:
        return body.decode(errors="replace")[:LONGEST]


def message_of(payload: object) -> str:
    """The message of an error in OpenAI's shape, or of whatever JSON came instead."""
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    return str(error.get("message", error) if isinstance(error, dict) else error)[:LONGEST]
