"""One request for vectors under way at a line, whose answer comes whole.

Owns the wait for all of it. Must not know how an engine words a request or an answer: that is `drivers/vectors.py`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import msgspec

from twinline.lines.client import Call, LineClient, Sink
from twinline.lines.drivers.driver import Reader
from twinline.lines.protocol import LineBroken, LineError, LineRefused, TextSource, TokenRequest, VectorRequest
from twinline.lines.wire import Delta

if TYPE_CHECKING:
    from twinline.lines.drivers.vectors import VectorDialect

LONGEST_BYTES = 256 << 20  # of one answer


class VectorCall(Call):
    """One request for vectors under way: nothing comes before everything is there."""

    __slots__ = ("_parts", "_size")

    def __init__(self, client: LineClient, dialect: VectorDialect, request: VectorRequest, sink: Sink) -> None:
        """Raises ValueError when the dialect cannot say `request`."""
        self._parts: list[bytes] = []
        self._size = 0
        super().__init__(cast(LineClient, _Speaking(client, dialect)), request, None, sink)

    def _parsed(self, data: bytes) -> tuple[Delta | None, LineBroken | None, bool]:
        self._parts.append(data)
        self._size += len(data)
        if self._size > LONGEST_BYTES:
            return None, LineBroken(f"an answer longer than {LONGEST_BYTES >> 20} MiB"), False
        return None, None, False

    def complete(self) -> None:
        if self._over or self._refused is not None:
            super().complete()
            return
        self._connection = None
        try:
            delta = self._reader(b"".join(self._parts))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
            self._fail(LineBroken(f"an answer that is not the protocol's: {error}"))
            return
        self.last = time.monotonic()
        self._came(delta, None, False)

    def _fail(self, error: LineError) -> None:
        if isinstance(error, LineRefused) and error.code == "deadline":
            error = LineBroken(error.message, "deadline")
        super()._fail(error)


class _Speaking:
    """A client's connections, spoken over in another dialect. Of a `LineClient`, what a call uses."""

    def __init__(self, client: LineClient, dialect: VectorDialect) -> None:
        self.target, self.pool, self.dialect = client.target, client.pool, _AsDialect(dialect)


class _AsDialect:
    framing: ClassVar[str] = "lines"
    usage_after_finish: ClassVar[bool] = False

    def __init__(self, dialect: VectorDialect) -> None:
        self._dialect = dialect

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        assert isinstance(request, VectorRequest)
        return self._dialect.encode(request)

    def reader(self, request: TokenRequest) -> Reader:
        assert isinstance(request, VectorRequest)
        count, read = len(request.inputs), self._dialect.read
        return cast(Reader, lambda body: read(body, count))


class Speaks(Protocol):
    """A line, as far as its address and dialect go."""

    @property
    def client(self) -> LineClient: ...

    @property
    def vectors(self) -> VectorDialect | None: ...


def ask(line: Speaks, request: VectorRequest, sink: Sink) -> VectorCall:
    """Starts a request. Raises ValueError where the engine gives no vectors or its dialect cannot say the request."""
    dialect = line.vectors
    if dialect is None:
        raise ValueError("it gives no vectors")
    call = VectorCall(line.client, dialect, request, sink)
    call.start()
    return call


def test_request(model: str, name: str) -> VectorRequest:
    """The smallest: one text of one token."""
    return VectorRequest(model=model, prompt=[0], request_id=name, inputs=[[0]], texts=["Hello"])
