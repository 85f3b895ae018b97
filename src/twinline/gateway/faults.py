"""Whose fault it is that a line did not answer: the line's, the request's, or nobody's.

Owns the distinction. Must not know what follows from it.
"""

from __future__ import annotations

from twinline.lines.protocol import LineBroken, LineError, LineRefused

# Why a stream broke without its line being at fault. One that is silent while its line answers others may only wait its
# turn there; a line that is silent as a whole is put out of service by `watch.py` itself.
NOBODYS = ("deadline", "moved", "gone", "stalled", "tokens_left_out")


def is_fault(error: LineError) -> bool:
    """Whether an error is the line's own doing: not a refusal of this request, a full queue, or a deadline."""
    if isinstance(error, LineRefused):
        return error.status >= 500 or error.status == 404
    return not (isinstance(error, LineBroken) and (error.code in NOBODYS or of_request(error)))


def of_request(error: LineError) -> bool:
    """The line said in the stream what others say by a 4xx: the request is at fault."""
    return isinstance(error, LineBroken) and error.code is not None and error.code[:1] == "4" and error.code.isdigit()


def unreachable(error: LineError) -> bool:
    return isinstance(error, LineRefused) and error.code == "line_unreachable"
