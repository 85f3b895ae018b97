"""Whose fault it is that a line did not answer: the line's, the request's, or nobody's.

Owns the distinction. Must not know what follows from it.
"""

from __future__ import annotations

import logging

from twinline.lines.protocol import LineBroken, LineError, LineRefused

# Statuses that are about us and not about the request: our key or account at the line, its name for the model, its own
# wait for our bytes.
OURS = frozenset({401, 402, 404, 407, 408})
# Another line may take it, and the one that said so is well: a 403 is of a remote that looks at prompts or of our key,
# a 409 of our name for the request, a 429 of its load.
ELSEWHERE = frozenset({403, 409, 429})
# Why a stream broke without its line being at fault. One that is silent while its line answers others may only wait its
# turn there; a line that is silent as a whole is put out of service by `watch.py` itself.
NOBODYS = frozenset({"deadline", "moved", "gone", "stalled", "tokens_left_out", *map(str, ELSEWHERE)})
CREDENTIALS = frozenset({401, 402, 407})
_log = logging.getLogger(__name__)


def is_fault(error: LineError) -> bool:
    """Whether an error is the line's own doing: not a refusal of this request, a full queue, or a deadline."""
    if isinstance(error, LineRefused):
        return not 400 <= error.status < 500 or error.status in OURS
    return not (isinstance(error, LineBroken) and (error.code in NOBODYS or of_request(error)))


def of_request(error: LineError) -> bool:
    """The line said in the stream what others say by a 4xx: the request is at fault."""
    return isinstance(error, LineBroken) and is_refusal(_status(error))


def is_full(error: LineError) -> bool:
    """The line has no room, whichever way it says so."""
    return _status(error) == 429


def is_refusal(status: int) -> bool:
    """Whether the status is about the request itself, which then fares no better elsewhere."""
    return 400 <= status < 500 and status not in OURS | ELSEWHERE


def reason_of(error: LineError) -> str:
    """Why the line is not asked, in words for any client: what it says of our key or account is for the log alone."""
    status = _status(error)
    if status in CREDENTIALS:
        _log.warning("a line refuses the gateway's key or account with %d: %.300s", status, error)
        return f"it refuses the gateway's own key or account ({status})"
    return str(error)


def _status(error: LineError) -> int:
    """As HTTP has it, also where it was said in the stream; 0 for none."""
    if isinstance(error, LineRefused):
        return error.status
    code = error.code if isinstance(error, LineBroken) else None
    return int(code) if code is not None and code.isdecimal() and len(code) == 3 else 0


def unreachable(error: LineError) -> bool:
    return isinstance(error, LineRefused) and error.code == "line_unreachable"
