"""What one request used, and how a record of it stands in a journal: one line, with a checksum.

Owns the shapes and the line. Must not know files or the database.
"""

from __future__ import annotations

from typing import Literal
from zlib import crc32

import msgspec

Status = Literal["finished", "aborted", "failed", "refused", "expired"]


class Segment(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The part of a request's answers that one line gave; a request that moved has several.

    `prompt_tokens`, `cached_tokens` (of those) and `completion_tokens` are what the tenant is counted for: summed over
    a request's segments, its prompt is there once and every delivered token once, however often it moved.
    `waste_tokens` is what was computed again because of a move: the operator's cost, never the tenant's.
    `cost` is in the record's currency. `seconds` is the time on the line.
    """

    line: str
    chip: str | None
    attempt: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    waste_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request, written once, when it ends.

    `uid` is `Journal.next_uid()`'s and tells records apart; `request_id` is the client's to see and may come twice.
    `key` is a key's id, None without keys. `started` is unix seconds.
    """

    uid: str
    request_id: str
    key: str | None
    model: str
    started: float
    seconds: float
    status: Status
    segments: list[Segment]
    choices: int = 1
    currency: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Usage).decode
_SUM = 9  # eight hexadecimal digits and a space


def line_of(record: Usage) -> bytes:
    """`crc32 json\\n`. JSON never holds a raw newline, so a reader finds the next line after any damage."""
    body = _encode(record)
    return b"%08x %b\n" % (crc32(body), body)


def record_of(line: bytes) -> Usage | None:
    """The record of a line without its newline; None if it is not whole."""
    body = line[_SUM:]
    if line[:_SUM] != b"%08x " % crc32(body):
        return None
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None
