"""Some texts of a request for vectors, from their first line to the answer, and how vectors are given out.

Owns one line's share of such a request, and cutting and writing a vector. Must not know HTTP towards the client.
Nothing is given out before all vectors of the share are there, so a line that breaks is replaced without a trace.
"""

from __future__ import annotations

import base64

import msgspec
import numpy as np

from twinline.gateway.choice import Choice
from twinline.gateway.closing import sane
from twinline.gateway.errors import bad_request
from twinline.gateway.transcript import Piece
from twinline.lines.protocol import VectorRequest
from twinline.lines.wire import Delta, VectorDelta


class VectorPiece(Piece, frozen=True, kw_only=True, gc=False):
    """The vectors of a share's texts, as little-endian float32."""

    vectors: list[bytes]


class VectorChoice(Choice):
    """One share: a choice without a text."""

    __slots__ = ("cut", "kept_to")

    cut: int | None  # values that the client is given of each vector; None: all

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
        if delta.usage is not None and sane(delta.usage):
            self.usage = delta.usage
        self._listener.piece(self, VectorPiece(self.index, [], [], finish="stop", vectors=delta.vectors))
        self._finished = True
        self._first(self.segments[-1])


def written(vector: bytes, dimensions: int | None, *, as_base64: bool) -> bytes:
    """A vector as JSON. `dimensions`: its first so many values, of length 1 again."""
    values = np.frombuffer(vector, "<f4")
    if dimensions is not None:
        values = values[:dimensions]
        length = float(np.linalg.norm(values.astype("f8")))
        values = (values / length).astype("<f4") if length else values
    if as_base64:
        return b'"%b"' % base64.b64encode(values.tobytes())
    return msgspec.json.encode(values.tolist())
