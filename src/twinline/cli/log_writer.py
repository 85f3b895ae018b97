"""A log on stderr that holds up nobody: a terminal under Ctrl-S, or a pipe whose reader has stopped, costs lines only.

Owns the wait for stderr. Must not know what is logged.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque

MOST_LINES = 10_000  # that wait for a reader
LAST_SECONDS = 1.0  # how long the end of the process waits for what is left to be read


class LogWriter(logging.Handler):
    """Formats where it is called and writes in a thread of its own, in order. What comes while `MOST_LINES` wait is
    counted, and the count is written where the lines would have been."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._came = threading.Condition()
        self._idle = True
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._came:
            if len(self._waiting) >= MOST_LINES:
                self._lost += 1
                return
            if self._lost:
                text = f"({self._lost} lines of this log are missing: nobody read it)\n{text}"
                self._lost = 0
            self._waiting.append(text.encode("utf-8", "backslashreplace") + b"\n")
            self._came.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="log", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Waits until all is written, but not for a reader that does not read."""
        until = time.monotonic() + LAST_SECONDS
        with self._came:
            while (self._waiting or not self._idle) and (left := until - time.monotonic()) > 0:
                self._came.wait(left)

    def _write(self) -> None:
        while True:
            with self._came:
                self._idle = True
                self._came.notify_all()
                while not self._waiting:
                    self._came.wait()
                self._idle = False
                data = b"".join(self._waiting)
                self._waiting.clear()
            while data:
                try:
                    data = data[self._write_some(data) :]
                except OSError:
                    break  # it is closed: there is nobody to tell

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # whoever started us reads stderr without waiting, and so we write
            select.select([], [self._descriptor], [])
            return 0
