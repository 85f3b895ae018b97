"""Some texts of a request for vectors, from their first line to the answer, and how vectors are given out.

Owns one line's share of such a request, and cutting and writing a vector. Must not know HTTP towards the client.
Nothing is given out before all vectors of the share are there, so a line that breaks is replaced without a trace.
"""

from __future__ import annotations

import base64

import msgspec
import numpy as np

from twinline.facts.decimals import decimals
from twinline.gateway.choice import Choice
from twinline.gateway.closing import sane
from twinline.gateway.errors import ApiError, bad_request
from twinline.gateway.transcript import Piece
from twinline.lines.protocol import VectorRequest
from twinline.lines.wire import Delta, VectorDelta

# Values of one answer: at most some 60 MB as numbers, 90 MB as base64, which is also quicker to write.
MAX_FLOATS, MAX_BASE64_VALUES = 1 << 22, 1 << 24


class VectorPiece(Piece, frozen=True, kw_only=True, gc=False):
    """The vectors of a share's texts, as little-endian float32."""

    vectors: list[bytes]


class VectorChoice(Choice):
    """One share: a choice without a text."""

    __slots__ = ("as_base64", "cut", "kept_to", "texts")

    cut: int | None  # values that the client is given of each vector; None: all
    texts: int  # of the whole answer
    as_base64: bool

    def delta(self, delta: Delta) -> None:
        if self._finished or not isinstance(delta, VectorDelta):
            return
        assert isinstance(self.request, VectorRequest)
        wanted, size = self.request.dimensions, len(delta.vectors[0]) // 4
        if wanted is not None and size != wanted:
            line = self.segments[-1].line.name
            told = f"Line {line} gives vectors of {size} values, not of {wanted}: leave dimensions out."
            self._fail(bad_request(told, "dimensions", "unsupported_parameter"))
            return
        if self.cut is not None and size < self.cut:
            told = f"dimensions {self.cut} is more than the {size} values of this model's vectors."
            self._fail(bad_request(told, "dimensions"))
            return
        if excess := too_many(self.texts, self.cut or size, as_base64=self.as_base64):
            self._fail(excess)
            return
        if delta.usage is not None and sane(delta.usage):
            self.segments[-1].usage = delta.usage
        self._listener.piece(self, VectorPiece(self.index, [], [], finish="stop", vectors=delta.vectors))
        self._finished = True
        self._first(self.segments[-1])


def too_many(texts: int, size: int, *, as_base64: bool) -> ApiError | None:
    """Why an answer may not have the vectors of so many texts, each of `size` values."""
    limit = MAX_BASE64_VALUES if as_base64 else MAX_FLOATS
    if texts * size <= limit:
        return None
    told = f"{texts} vectors of {size} values are {texts * size} values; one answer has at most {limit}"
    change = f"send at most {limit // size} texts at once" if size <= limit else "ask for fewer dimensions"
    if as_base64:
        return bad_request(f"{told}: {change}.", "input")
    other = f'or ask for encoding_format "base64", of which it has {MAX_BASE64_VALUES}'
    return bad_request(f'{told} as "float": {change}, {other}.', "input")


def written(vector: bytes, dimensions: int | None, *, as_base64: bool) -> bytes:
    """A vector as JSON. `dimensions`: its first so many values, of length 1 again. Numbers are rounded to
    what still reads back as the same float32: two thirds of the bytes that a double's digits take."""
    values = np.frombuffer(vector, "<f4")
    if dimensions is not None:
        values = values[:dimensions]
        length = float(np.linalg.norm(values.astype("f8")))
        values = (values / length).astype("<f4") if length else values
    if as_base64:
        return b'"%b"' % base64.b64encode(values.tobytes())
    return msgspec.json.encode(decimals(values))
