"""Answers for those who wait for them: a queue of what comes, and an answer that is read whole.

Owns the hand-over from callbacks to whoever awaits. Must not know requests.
"""

from __future__ import annotations

import asyncio

from twinline.lines.http import ConnectionBroken, cannot_read
from twinline.lines.protocol import LineError
from twinline.lines.wire import Delta

LONGEST_ANSWER_BYTES = 4 << 20  # to a plain question


class Queue:
    """A sink that somebody waits at."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Delta | LineError | None] = asyncio.Queue()

    def delta(self, delta: Delta) -> None:
        self.items.put_nowait(delta)

    def finished(self) -> None:
        self.items.put_nowait(None)

    def failed(self, error: LineError) -> None:
        self.items.put_nowait(error)


class Whole:
    """An answer that is read whole."""

    plain = False
    read_answer = read_chunks = staticmethod(cannot_read)

    def __init__(self) -> None:
        self.result: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._status = self._size = 0
        self._parts: list[bytes] = []

    def take(self, read: object) -> None: ...

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._status = status

    def data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > LONGEST_ANSWER_BYTES:
            self._parts.clear()
            if not self.result.done():
                self.result.set_exception(ConnectionBroken(f"an answer longer than {LONGEST_ANSWER_BYTES >> 20} MiB"))
            return
        self._parts.append(data)

    def complete(self) -> None:
        self.ended = True
        if not self.result.done():
            self.result.set_result((self._status, b"".join(self._parts)))

    def broken(self, error: ConnectionBroken) -> None:
        self.ended = True
        if not self.result.done():
            self.result.set_exception(error)
