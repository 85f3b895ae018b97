"""The journal: what was used, on disk before the client has its last byte.

Owns one process's files: writing, rotation, fsync. Must not know the database; `fold.py` reads what is written here.

A file is `PREFIX-NUMBER.jsonl`, held by a lock (flock) while its process writes to it: the lock ends with the process
however it ends, and a file that can be locked will not grow any more. A file gets this name only once it is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
from collections import deque
from itertools import count
from pathlib import Path

from twinline.store.usage import Usage, line_of

SUFFIX = ".jsonl"
UNNAMED = ".new"
FSYNC_SECONDS = 0.2
ROTATE_BYTES = 16 << 20
AT_ONCE = 1 << 16  # bytes of one write
MOST_KEPT = 8 << 20  # bytes of records that a full disk did not take; the oldest beyond that are lost
_log = logging.getLogger(__name__)


class Journal:
    """This process's journal. `write`, `add` and `commit` belong to one thread; a thread of its own syncs and prepares
    the next file.

    A record that `write` or `commit` has returned from survives the death of the process at once, and a loss of power
    after `FSYNC_SECONDS` more. What a full disk does not take waits for room in memory. Raises OSError if the directory
    cannot be written to.
    """

    def __init__(
        self, directory: Path, *, rotate_bytes: int = ROTATE_BYTES, fsync_seconds: float = FSYNC_SECONDS
    ) -> None:
        self._directory, self._rotate_bytes, self._seconds = directory, rotate_bytes, fsync_seconds
        self._prefix = secrets.token_hex(8)
        self._requests = count(1)
        self._files = count(1)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self._open()
        self._size = 0
        self._torn = False
        self._dirty = False
        self._added: deque[bytes] = deque()  # not yet on disk, by `write`'s thread alone
        self._bytes = 0  # of them
        self.lost = 0  # records that will never be
        # Handed over by single assignments and list operations, which the interpreter makes whole.
        self._spare: int | None = None
        self._full: list[int] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)
        self._thread.start()

    def next_uid(self) -> str:
        """Unique over all processes and times."""
        return f"{self._prefix}-{next(self._requests)}"

    @property
    def waiting(self) -> int:
        """Records that the disk has not taken yet."""
        return len(self._added)

    def write(self, record: Usage) -> None:
        """Appends the record by one system call. Raises OSError (a full disk): the next `commit` writes it, too."""
        self.add(record)
        self.commit()

    def add(self, record: Usage) -> None:
        """Keeps the record for the next `commit`, which must come before the client has its last byte."""
        line = line_of(record)
        self._added.append(line)
        self._bytes += len(line)

    def commit(self) -> None:
        """Appends what was added, by one system call where it is little. Raises OSError where not all of it fits: the
        next one tries the rest again. A record that lacks its line end alone is there twice then, and is folded once
        (by its uid)."""
        while self._added:
            some = self._added if self._bytes <= AT_ONCE else self._first()
            data = b"\n" * self._torn + b"".join(some)  # a line end ends what an earlier failed write left behind
            try:
                written = os.write(self._file, data)
            except OSError:
                self._drop()
                raise
            self._dirty = True
            self._size += written
            self._took(written - self._torn)
            if written != len(data):
                self._drop()
                raise OSError(f"the journal took {written} of {len(data)} bytes; its disk is full")
            if self._size >= self._rotate_bytes and self._spare is not None:
                self._full.append(self._file)
                self._file, self._spare, self._size = self._spare, None, 0

    def _first(self) -> list[bytes]:
        """Of a backlog: a disk that takes none of it must not cost the time to put all of it together."""
        some, size = list[bytes](), 0
        for line in self._added:
            some.append(line)
            size += len(line)
            if size >= AT_ONCE:
                break
        return some

    def _took(self, size: int) -> None:
        """The disk took the first bytes: writing them again would take the room that comes free, for nothing."""
        while self._added and size >= len(self._added[0]):
            size -= self._pop()
        self._torn = size != 0

    def _pop(self) -> int:
        size = len(self._added.popleft())
        self._bytes -= size
        return size

    def _drop(self) -> None:
        while self._bytes > MOST_KEPT:
            self._pop()
            self.lost += 1

    def close(self) -> None:
        """Syncs and lets go of the file. `write` must not be called any more."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        try:
            self.commit()
        except OSError as error:
            _log.error("the last usage is not recorded, %d requests': %s", len(self._added), error)
            self._added.clear()  # no later `commit` may write to a number that is another file's by then
        for file in (*self._full, self._file):
            os.fsync(file)
            os.close(file)
        if self._spare is not None:
            os.close(self._spare)

    def _open(self) -> int:
        path = self._directory / f"{self._prefix}-{next(self._files):06d}{SUFFIX}"
        unnamed = path.with_suffix(UNNAMED)
        file = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(path)
            _sync_directory(self._directory)
        except BaseException:
            os.close(file)
            raise
        return file

    def _keep(self) -> None:
        """The thread. A failure is told and tried again: what was written stays written."""
        failing = False
        while not self._closed.wait(self._seconds):
            try:
                self._tend()
                failing = False
            except OSError as error:
                if not failing:
                    _log.error("the journal in %s cannot be synced: %s", self._directory, error.strerror)
                failing = True

    def _tend(self) -> None:
        if self._dirty:
            self._dirty = False
            try:
                # A file that fills meanwhile stays open: only this thread closes it, below.
                os.fsync(self._file)
            except OSError:
                self._dirty = True
                raise
        while self._full:
            file = self._full[0]
            os.fsync(file)
            self._full.pop(0)
            os.close(file)
        if self._spare is None and self._size * 2 >= self._rotate_bytes:
            self._spare = self._open()


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)
