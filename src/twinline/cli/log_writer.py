"""Output that holds up nobody: a terminal under Ctrl-S, or a pipe whose reader has stopped, costs lines only.

Owns the wait for the reader. Must not know what is written.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque

STDOUT, STDERR = 1, 2
MOST_LINES = 10_000  # that wait for a reader
LAST_SECONDS = 1.0  # how long the end of the process waits for what is left to be read


class Writer:
    """Writes in a thread of its own, in order. What comes while `MOST_LINES` wait is counted, and the count is written
    where the lines would have been."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._came = threading.Condition()
        self._idle = True
        self._thread: threading.Thread | None = None

    def put(self, text: str) -> None:
        """A line, or some."""
        with self._came:
            if len(self._waiting) >= MOST_LINES:
                self._lost += 1
                return
            self._waiting.append(self._encoded(text))
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

    def _encoded(self, text: str) -> bytes:
        return f"{text}\n".encode(self._encoding, "backslashreplace")

    def _write(self) -> None:
        while True:
            with self._came:
                self._idle = True
                self._came.notify_all()
                while not self._waiting:
                    self._came.wait()
                self._idle = False
                if self._lost:
                    self._waiting.append(self._encoded(f"({self._lost} lines are missing here: nobody read them)"))
                    self._lost = 0
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
        except BlockingIOError:  # whoever started us reads without waiting, and so we write
            select.select([], [self._descriptor], [])
            return 0


class LogWriter(logging.Handler):
    """A log by a `Writer`; formatted where it is called."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._writer = Writer(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._writer.put(text)

    def flush(self) -> None:
        self._writer.flush()
