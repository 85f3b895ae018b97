"""Errors in OpenAI's shape, and what each failure of a line means to a client.

Owns statuses, types and codes. Must not know endpoints or how a request is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twinline.lines.protocol import LineBroken, LineError, LineRefused

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_SECONDS = "1"


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
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        detail = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": detail})


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"The model `{name}` does not exist.", param="model", code="model_not_found")


def deadline_passed() -> ApiError:
    return ApiError(504, "The request did not finish within its timeout.", param="timeout_s", code="deadline_exceeded")


def stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", code="server_stopping", headers={"retry-after": RETRY_SECONDS})


def from_line(error: LineError) -> ApiError:
    """A line's failure as the client's error."""
    if isinstance(error, LineRefused):
        if error.status == 429:
            headers = {"retry-after": error.retry_after or RETRY_SECONDS}
            return ApiError(429, error.message, code=error.code or "line_full", headers=headers)
        if 400 <= error.status < 500 and error.status not in (404, 409):
            return ApiError(400, error.message, param=error.param, code=error.code)
        # 404 and 409 too: the line's name for the model and the request's name at the line are ours, not the client's
        headers = {"retry-after": error.retry_after or RETRY_SECONDS}
        return ApiError(503, error.message, code=error.code or "line_unavailable", headers=headers)
    if isinstance(error, LineBroken) and error.code == "deadline":
        return deadline_passed()
    return ApiError(502, f"The line failed while answering: {error}", code="line_broken")
