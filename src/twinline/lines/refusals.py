"""What a line says when it does not take a request: an answer whose status is not 200.

Owns reading it, in OpenAI's shape or none. Must not know what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twinline.lines.protocol import LineRefused


class _Detail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _Refusal(msgspec.Struct):
    error: _Detail


_refusal = msgspec.json.Decoder(_Refusal)


def refusal_of(status: int, body: bytes, headers: Mapping[bytes, bytes]) -> LineRefused:
    try:
        detail = _refusal.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = _Detail()
    code = None if detail.code is None else str(detail.code)
    message = detail.message or body[:500].decode("utf-8", "replace") or f"status {status}"
    retry_after = headers.get(b"retry-after", b"").decode("latin-1") or None
    return LineRefused(status, message, code, retry_after, detail.param)
