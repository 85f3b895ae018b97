"""The head of a request that its client sends again.

Owns when two heads are the same. Must not know what a head says. A client that keeps its connection sends the same head
with each request, but for the length of the body. What httptools and uvicorn found in it once is true of it again; that
takes a fifth of all that a short request takes here. Only bytes that are one whole request, head and body, from the
first to the last, are compared; all others go the long way, of which nothing has begun then.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

_LENGTH = re.compile(rb"\r\ncontent-length: *([1-9][0-9]{0,4})\r\n", re.IGNORECASE)


def _never(data: bytes, before: bytes, after: bytes, /) -> bytes | None:
    return None


body_after: Callable[[bytes, bytes, bytes], bytes | None] = _never
with contextlib.suppress(ImportError):
    from twinline.gateway._requests import body_after


def head_of(data: bytes) -> tuple[bytes, bytes] | None:
    """What `body_after` takes to know the head of `data` again: it before and after the body's length. None where
    `data` are not one whole request with a length said once."""
    end = data.find(b"\r\n\r\n") + 4
    found = _LENGTH.search(data, 0, end - 2)
    if body_after is _never or end < 4 or found is None or len(data) - end != int(found[1]):
        return None
    if _LENGTH.search(data, found.end() - 2, end - 2):
        return None
    return data[: found.start(1)], data[found.end(1) : end]
