"""Why an answer left a line, and why a request got none: the few words that metrics, spans and the access log use.

Owns a closed vocabulary, because a label must not take what an engine says. Must not know who counts them.
"""

from __future__ import annotations

from twinline.gateway.errors import ApiError
from twinline.gateway.faults import is_full
from twinline.lines.protocol import LineError, LineRefused

# Of a line's failure: `full` it had no room, `unreachable` nobody listened, `refused` it did not take the request,
# `broken` the answer broke off, `stalled` it fell silent, `gone` the line went out of service, `drained` it was asked
# to give its streams up.
_BROKEN = {"stalled": "stalled", "gone": "gone", "moved": "drained", "deadline": "deadline"}
LEFT = (*_BROKEN.values(), "broken", "full", "unreachable", "refused")
_UNREACHABLE = ("line_unreachable", "line_not_serving")

# Codes of ours that say more than the status.
_CODES = frozenset(
    "invalid_api_key forbidden model_not_allowed model_not_found line_not_found rate_limit_exceeded "
    "insufficient_quota request_too_large limits_unavailable no_line too_busy cannot_continue deadline_exceeded "
    "context_length_exceeded unsupported_parameter body_too_large too_many_bytes "
    "server_stopping internal_error".split()
)
_STATUSES = {
    400: "bad_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 408: "slow_body",
    413: "body_too_large", 415: "bad_request", 429: "line_full", 500: "internal_error", 502: "line_broken",
    503: "line_unavailable", 504: "deadline_exceeded",
}  # fmt: skip

OF_MODELS = (  # why a request for a model got no answer, as far as `refusals_total` counts it
    "bad_request", "context_length_exceeded", "unsupported_parameter", "line_not_found", "no_line", "too_busy",
    "line_full", "line_unavailable", "line_broken", "cannot_continue", "deadline_exceeded", "server_stopping",
)  # fmt: skip


def why_left(error: LineError) -> str:
    """Why an attempt ended at a line before the answer was whole."""
    if is_full(error):
        return "full"
    if isinstance(error, LineRefused):
        return "unreachable" if error.code in _UNREACHABLE else "refused"
    return _BROKEN.get(getattr(error, "code", None) or "", "broken")


def why_refused(error: ApiError) -> str:
    """Why a request ended with an error."""
    return error.code if error.code in _CODES and error.code is not None else of_status(error.status)


def of_status(status: int) -> str:
    return _STATUSES.get(status, f"status_{status}")
