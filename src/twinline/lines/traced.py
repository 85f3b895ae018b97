"""The header by which a line takes part in its request's trace.

Owns its place in a request's bytes. Must not know what a trace is.
"""

from __future__ import annotations


def traced(request: bytes, asker: object) -> bytes:
    """`request` with the head lines that its asker's `trace` gives; as it is for an asker that is not traced."""
    trace = getattr(asker, "trace", None)
    if trace is None:
        return request
    start, _, rest = request.partition(b"\r\n")
    return b"%b\r\n%b%b" % (start, trace.header, rest)
