"""The head of a request that its client sends again, and what else of a head matters before an application sees it.

Owns when two heads are the same. Must not know paths or models. A client that keeps its connection
sends the same head with each request, but for the length of the body. What httptools and uvicorn found in it once is
true of it again; that takes a fifth of all that a short request takes here. Only bytes that are one whole request, head
and body, from the first to the last, are compared, in one piece or in the two that many clients write; all others go
the long way, of which nothing has begun then.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable

SHORT_BODY_BYTES = 16 << 10  # of a body waited for before a task begins; uvicorn takes 64 KiB unasked
_LENGTH = re.compile(rb"\r\ncontent-length: *([1-9][0-9]{0,4})\r\n", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def _never(data: bytes, before: bytes, after: bytes, /) -> bytes | int | None:
    return None


body_after: Callable[[bytes, bytes, bytes], bytes | int | None] = _never
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


class Repeated:
    """One connection's memory of its latest head, which was its `caller`'s. `held` is such a head that came again,
    without its body so far; `alone` is where a new request was cut, once and before its end; `_tail` are the last bytes
    of the latest piece of a head."""

    __slots__ = ("_tail", "alone", "caller", "held", "known")

    def __init__(self) -> None:
        self.known: tuple[bytes, bytes] | None = None
        self.caller: object = None
        self.held = self.alone = self._tail = b""

    def forget(self) -> None:
        self.known = self.caller = None

    def keep(self, data: bytes, caller: object) -> None:
        """The request `data` may come again."""
        self.known, self.caller = head_of(data), caller

    def body_in(self, data: bytes) -> bytes | None:
        """The body of a request with the same head: empty if it is still to come, and then the head is held; None if
        the data are anything else."""
        assert self.known is not None
        found = body_after(data, *self.known)
        if not isinstance(found, int):
            return found
        self.held = data
        return b""

    def without_upgrade(self, data: bytes, begins: bool) -> bytes:
        """The bytes of a head that ask for no other protocol, as HTTP allows a server to read it. httptools would take
        what follows for that protocol, the body too: Java's client asks so with every request. `begins`: a request
        begins with `data`; else they go on with its head, whose end may have begun in the piece before. What follows
        that end is left as it is: a body that became longer would leave its last bytes to be read as a request."""
        before = b"" if begins else self._tail
        self._tail = (before + data[-3:])[-3:]
        if b"pgrade:" not in data:
            return data
        head, end, rest = (before + data).partition(b"\r\n\r\n")
        return (_UPGRADE.sub(b"\r\nx-upgrade:", head) + end + rest)[len(before) :]


def is_short(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body's length is said and is little."""
    for name, value in headers:
        if name == b"content-length":
            return value.isdigit() and len(value) < 6 and int(value) <= SHORT_BODY_BYTES
    return False
