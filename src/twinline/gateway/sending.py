"""An answer's way out: HTTP/1.1 on the connection that uvicorn read the request from.

Owns the bytes of a head and the framing of a body. Must not know what an answer says. ASGI's messages are a dict, a
coroutine and a check of every header for each of them; here an answer's head and body are bytes, and uvicorn's cycle of
the request is told only what it has to know: that the answer has begun, and that it has ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

CHUNKED = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class _Defaults:
    """The headers that uvicorn gives every answer, such as the date: it makes the list anew once a second."""

    made_of: object = None
    lines = b""


def head(cycle: RequestResponseCycle, status: int, lines: bytes, extra: Mapping[str, str] | None = None) -> bytes:
    """A head with `lines`, header lines that each end with CRLF, and `extra`, whose values may be a line's words.

    `connection: close` there, or asked by the client, closes the connection after the answer.
    """
    if cycle.default_headers is not _Defaults.made_of:
        _Defaults.made_of = cycle.default_headers
        _Defaults.lines = b"".join([b"%b: %b\r\n" % header for header in cycle.default_headers])
    for name, value in (extra or {}).items():
        lines += f"{name}: {_UNPRINTABLE.sub(' ', value)}\r\n".encode("latin-1", "replace")
        if name == "connection" and value == "close":
            cycle.keep_alive = False
    if not cycle.keep_alive and not (extra and "connection" in extra):
        lines += b"connection: close\r\n"
    return b"".join((STATUS_LINE[status], _Defaults.lines, lines, b"\r\n"))


def send(cycle: RequestResponseCycle, data: bytes, last: bool) -> None:
    """The next bytes of the answer; after the `last` the connection is free for the next request, or closes."""
    if cycle.disconnected:
        return
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(data)
    if last:
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


def body_of(cycle: RequestResponseCycle) -> bytes | None:
    """The request's body, if all of it is here."""
    if cycle.more_body or cycle.disconnected:
        return None
    cycle.flow.resume_reading()
    body, cycle.body = bytes(cycle.body), bytearray()
    return body
