"""What a line says when it does not take a request: an answer whose status is not 200, or that is no stream.

Owns reading it: in OpenAI's shape, as `{"error": "..."}` (Ollama), with its words on top (vLLM before 2025-08, SGLang)
or as FastAPI's `detail`, or none of these; and telling a full queue from a fault. Must not know what follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from twinline.lines.protocol import LineRefused

# What vLLM (of either of its two limits), SGLang and Ollama say with a 503 when they have no room, and are well.
_FULL = re.compile("cannot accept new requests|token backlog limit|request queue is full|maximum pending requests")
_TITLE = re.compile(rb"<title>([^<]{1,200})", re.IGNORECASE)


def refusal_of(status: int, body: bytes, headers: Mapping[bytes, bytes]) -> LineRefused:
    said = _detail(body)
    code, param = said.get("code"), said.get("param")
    words = [said.get(name) for name in ("error", "message", "detail")]
    message = next((word for word in words if word and isinstance(word, str)), "")
    if status == 200:
        message = message or "it answered with something that is no stream"
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    status = refused_status(status, message)
    message = message or _page(status, body) or body[:500].decode("utf-8", "replace") or f"status {status}"
    retry_after = headers.get(b"retry-after", b"").decode("latin-1") or None
    named = str(code) if isinstance(code, str | int) else None
    return LineRefused(status, message, named, retry_after, param if isinstance(param, str) else None)


def refused_status(status: int, message: str) -> int:
    """The status that says what is meant: 429 for a full queue."""
    return 429 if status == 503 and _FULL.search(message) else status


def _detail(body: bytes) -> dict[str, Any]:
    """The object that holds the words."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    inner = said.get("error")
    return inner if isinstance(inner, dict) else said


def _page(status: int, body: bytes) -> str:
    """What a page for people comes to, as a proxy shows one."""
    if not body.lstrip().startswith(b"<"):
        return ""
    title = _TITLE.search(body)
    return f"status {status}, with a page" + (f": {title[1].decode('utf-8', 'replace').strip()}" if title else "")
