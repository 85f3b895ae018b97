"""Blocking work beside an event loop, one after another, in a thread that the end of the process does not wait for.

Owns the thread. Must not know what is done there. A database that hangs, as with a stuck disk, holds such a thread for
as long as it likes; Python's own executors would have the process wait for that, too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Beside:
    """`do` from one event loop. The thread begins with the first work and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def do(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Its result; the work goes on where nobody waits for that any more."""
        if not self._thread.is_alive():
            self._thread.start()
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()
        self._work.put((done, lambda: call(*arguments)))
        return asyncio.wrap_future(done)

    def close(self) -> None:
        """No more work comes."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            done, call = work
            try:
                result = call()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(result)
            del work, done, call
