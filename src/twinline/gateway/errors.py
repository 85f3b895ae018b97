"""Errors in OpenAI's shape, and what each failure of a line means to a client.

Owns statuses, types and codes. Must not know endpoints or how a request is decoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from twinline.gateway.faults import CREDENTIALS, is_full, is_refusal, of_request, reason_of
from twinline.lines.protocol import LineBroken, LineError, LineRefused

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_SECONDS = "1"
MOST_REASONS = 3
LONGEST_MESSAGE, LONGEST_NAME = 2000, 200  # characters; some name what the client or a line sent
_SECONDS = re.compile(r"[0-9]{1,5}")
OVER_CONTEXT = "context_length_exceeded"
_ABOUT_CONTEXT = re.compile(r"context (length|size|window)", re.IGNORECASE)  # of OpenAI, vLLM, SGLang, llama.cpp


class ApiError(Exception):
    """What a client is told instead of an answer. `param` is the field at fault, when one is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ... ({len(message)} characters)"
        super().__init__(message)
        self.status, self.message = status, message
        self.param = None if param is None else param[:LONGEST_NAME]
        self.code = None if code is None else code[:LONGEST_NAME]
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        detail = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": detail})


class Wording(Protocol):
    """How a door words its errors, and names the request in the head of every answer."""

    def head(self, request_id: str) -> bytes:
        """Header lines."""

    def body(self, error: ApiError, request_id: str | None) -> bytes: ...

    def event(self, error: ApiError, request_id: str) -> bytes:
        """For a stream that cannot have another status any more."""


class OpenAIWording:
    def head(self, request_id: str) -> bytes:
        return b"x-request-id: %b\r\n" % request_id.encode()

    def body(self, error: ApiError, request_id: str | None) -> bytes:
        return error.body()

    def event(self, error: ApiError, request_id: str) -> bytes:
        return b"data: " + error.body() + b"\n\n"


OPENAI = OpenAIWording()


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def over_context(limit: int, why: str, param: str) -> ApiError:
    """A prompt, or all of a request, is longer than the model takes. These are OpenAI's words and its code: clients
    that can go on with a shorter conversation know the case by the one or the other."""
    told = f"This model's maximum context length is {limit} tokens, but {why}."
    return bad_request(told, param, OVER_CONTEXT)


def beyond(prompt: int, output: int, context: int) -> str:
    """Why so many tokens do not fit, in Anthropic's words: clients look for them, too, and read the numbers."""
    if prompt >= context:
        return f"the prompt is too long: {prompt} tokens > {context - 1} maximum"
    return f"input length and `max_tokens` exceed context limit: {prompt} + {output} > {context}"


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"The model `{name}` does not exist.", param="model", code="model_not_found")


def unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def forbidden(message: str, code: str = "forbidden") -> ApiError:
    return ApiError(403, message, code=code)


def not_admitted(message: str, code: str, retry_after_seconds: int | None, status: int) -> ApiError:
    """The key's limits stand against it."""
    headers = {} if retry_after_seconds is None else {"retry-after": str(retry_after_seconds)}
    return ApiError(status, message, code=code, headers=headers)


def deadline_passed() -> ApiError:
    return ApiError(504, "The request did not finish within its timeout.", param="timeout_s", code="deadline_exceeded")


def stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", code="server_stopping", headers={"retry-after": RETRY_SECONDS})


def no_line(model: str, why: Sequence[str]) -> ApiError:
    """Nothing can answer now."""
    shown = [*why[:MOST_REASONS], *([f"and {len(why) - MOST_REASONS} more"] if len(why) > MOST_REASONS else [])]
    reasons = "; ".join(shown) or "it has no line"
    headers = {"retry-after": RETRY_SECONDS}
    return ApiError(503, f"No line serves `{model}` now: {reasons}.", code="no_line", headers=headers)


def unfit(model: str, why: Sequence[str], param: str | None) -> ApiError:
    """No line can do what the request asks for, whatever the load."""
    message = f"No line of `{model}` can take this request: {'; '.join(why)}."
    if any("context" in reason for reason in why):
        return ApiError(400, message, code=OVER_CONTEXT)
    return ApiError(400, message, param=param, code="unsupported_parameter")


def too_busy(model: str, why: str, seconds: float) -> ApiError:
    headers = {"retry-after": str(max(1, math.ceil(seconds)))}
    return ApiError(429, f"`{model}` is busy: {why}.", code="too_busy", headers=headers)


def cannot_continue(why: str) -> ApiError:
    """A stream broke and cannot go on: told in the stream, which has no clean end then."""
    return ApiError(502, f"The answer broke off and could not be continued: {why.rstrip('.')}.", code="cannot_continue")


def from_line(error: LineError) -> ApiError:
    """A line's failure as the client's error."""
    if isinstance(error, LineRefused):
        if error.status == 429:
            headers = {"retry-after": _retry_after(error)}
            return ApiError(429, error.message, code=error.code or "line_full", headers=headers)
        if is_refusal(error.status):
            return _unacceptable(error.message, error.code, error.param)
        if error.status == 403:
            return ApiError(403, "The line refuses this request.", code="line_refuses")
        headers = {"retry-after": _retry_after(error)}
        if error.status in CREDENTIALS:
            told = "The line does not take the gateway's own key or account."
            return ApiError(503, told, code="line_unavailable", headers=headers)
        return ApiError(503, error.message, code=error.code or "line_unavailable", headers=headers)
    if isinstance(error, LineBroken) and error.code == "deadline":
        return deadline_passed()
    if isinstance(error, LineBroken) and is_full(error):  # said in a stream: it is no less full for that
        return ApiError(429, error.reason, code="line_full", headers={"retry-after": RETRY_SECONDS})
    if isinstance(error, LineBroken) and of_request(error):
        return _unacceptable(error.reason)
    return ApiError(502, f"The line failed while answering: {reason_of(error)}", code="line_broken")


def _unacceptable(told: str, code: str | None = None, param: str | None = None) -> ApiError:
    """What a line says of the request itself."""
    return ApiError(400, told, param=param, code=OVER_CONTEXT if _ABOUT_CONTEXT.search(told) else code)


def not_asked(line: str, error: Exception) -> ApiError:
    """The request cannot be put in the line's words; or, but for a ValueError, we failed to do so."""
    if isinstance(error, ValueError):
        return ApiError(400, f"Line {line} cannot take this request: {error}.")
    return ApiError(500, "The gateway failed to ask a line; its log says why.", code="internal_error")


def internal() -> ApiError:
    return ApiError(500, "The gateway failed; its log says why.", code="internal_error")


def _retry_after(error: LineRefused) -> str:
    """What the line asks for, if that is a number of seconds: its other words do not become a header of ours."""
    asked = error.retry_after or ""
    return asked if _SECONDS.fullmatch(asked) else RETRY_SECONDS
