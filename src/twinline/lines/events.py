"""Plain answers of the line protocol read in one step, by compiled code, from the bytes of the socket to a `Delta`.

Owns what "plain" means and whether the compiled reader is there. Plain are chunks that each hold whole events of token
ids, finish and stop reasons and usage, nothing else of meaning: what an engine sends but for log-probabilities and
errors. Everything else, and everything where the extension was not built, takes the way by `httptools`, `EventLines`
and `read_chunk`, which reads the same from the same bytes. csrc/line_events.cpp keeps no state, so either may read any
chunk of an answer.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from twinline.lines.http import cannot_read
from twinline.lines.wire import Delta, Usage

if TYPE_CHECKING:
    from twinline.lines._events import Read

__all__ = ["COMPILED", "delta_of", "read_answer", "read_chunks"]

read_answer = read_chunks = cannot_read
with contextlib.suppress(ImportError):
    from twinline.lines._events import read_answer, read_chunks
COMPILED = read_chunks is not cannot_read


def delta_of(read: Read) -> Delta | None:
    """All events that were read but `[DONE]` as one, None if there were no others."""
    tokens, prompt, finish, stop, usage, _, _ = read
    if tokens is None:
        return None
    return Delta(tokens, None, prompt, None, finish, stop, None if usage is None else Usage(*usage))
