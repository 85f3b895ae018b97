"""Folding: what journals hold goes into the database, each record once.

Owns reading journal files, how far each has been read, and their deletion. Must not know who writes them or when it is
called: any process of the machine may fold at any time, also what dead processes left, and may die while it does.

Once: a file's records and how far it has been read are written in one transaction, and a record that is there already
(by its uid) is left alone. A file is deleted when all of it is folded and its writer has let go of it (`journal.py`).

On SQLite whoever writes keeps all others from it, and requests wait for limits meanwhile. So a transaction is short,
its lines are read before it begins, and it does not wait for the disk: only the deletion of a file does, with no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlalchemy.exc import DataError, IntegrityError

from twinline.store import tables
from twinline.store.database import Database
from twinline.store.journal import SUFFIX, UNNAMED
from twinline.store.usage import Usage, record_of

BATCH_BYTES = 1 << 16  # some two hundred records a transaction
DAY_SECONDS = 86400
STALE_SECONDS = 3600.0  # a file without its name for so long was left by a process that died at its birth
_FILES = tables.journal_files
_KNOWN = select(_FILES.c.offset).where(_FILES.c.name == bindparam("name"))
_LOCKED = select(_FILES).where(_FILES.c.name == bindparam("name")).with_for_update()
_MOVED = update(_FILES).where(_FILES.c.name == bindparam("b_name"))
_UNTAKEABLE = (DataError, IntegrityError, OverflowError, ValueError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folded:
    """What a fold found. `records` are new ones; `torn` lines are those whose checksum failed."""

    records: int = 0
    torn: int = 0
    deleted_files: int = 0

    def __add__(self, other: Folded) -> Folded:
        return Folded(self.records + other.records, self.torn + other.torn, self.deleted_files + other.deleted_files)


def fold(database: Database, directory: Path) -> Folded:
    """Folds every journal of `directory`. Blocks. Raises OSError and what the database raises; what is folded stays."""
    total = Folded()
    if not directory.is_dir():
        return total
    for path in sorted(directory.iterdir()):
        if path.suffix == SUFFIX:
            total += _fold_file(database, path)
        elif path.suffix == UNNAMED:
            _remove_stale(path)
    return total


def _fold_file(database: Database, path: Path) -> Folded:
    total = Folded()
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return total  # another process was here
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended = True
        except BlockingIOError:
            ended = False
        while True:
            step, offset = _fold_batch(database, path.name, file, ended)
            total += step
            if offset is None:
                break
        if ended:
            # The lock is ours: nobody writes to this file any more, and nobody else is about to delete it.
            database.sync()
            path.unlink(missing_ok=True)
            total += Folded(deleted_files=1)
        if not path.exists():
            with database.writing(durable=False) as connection:
                connection.execute(delete(tables.journal_files).where(tables.journal_files.c.name == path.name))
    return total


def _fold_batch(database: Database, name: str, file: BinaryIO, ended: bool) -> tuple[Folded, int | None]:
    """One transaction's worth, and where it ended; None when there is no more."""
    mark = {"name": name}
    with database.reading() as connection:
        known = connection.execute(_KNOWN, mark).scalar()
    lines, end = _lines_from(file, known or 0, ended)
    if not lines:
        return Folded(), None
    records, torn = _read(lines)
    with database.writing(durable=False) as connection:
        began = time.monotonic()
        if known is None:
            connection.execute(database.insert_new(tables.journal_files), {**mark, "offset": 0, "torn": 0})
        # Locks the row on PostgreSQL; on SQLite this transaction is the only writer.
        row = connection.execute(_LOCKED, mark).one_or_none()
        if row is None:
            return Folded(), None  # another process has folded and deleted the file meanwhile
        if row.offset != (known or 0):
            return Folded(), row.offset  # another process has folded these lines since
        new, refused = _insert(database, connection, list(records.values()))
        connection.execute(_MOVED, {"b_name": name, "offset": end, "torn": row.torn + torn + refused})
    if database.sqlite:
        time.sleep(time.monotonic() - began)  # others get at least as long for their writes
    if torn:
        _log.warning("%d damaged lines in journal %s before byte %d", torn, name, end)
    return Folded(new, torn + refused), end


def _read(lines: list[bytes]) -> tuple[dict[str, Usage], int]:
    """The records by uid, and how many lines are damaged."""
    records: dict[str, Usage] = {}
    torn = 0
    for line in lines:
        record = record_of(line)
        if record is not None:
            records.setdefault(record.uid, record)
        elif line:  # an empty line ends what a failed write left
            torn += 1
    return records, torn


def _lines_from(file: BinaryIO, offset: int, ended: bool) -> tuple[list[bytes], int]:
    """Whole lines of one batch and where they end. What a dead writer left after its last newline is a torn line."""
    file.seek(offset)
    data = file.read(BATCH_BYTES)
    cut = data.rfind(b"\n") + 1
    if not cut and len(data) == BATCH_BYTES:
        data += file.readline()
        cut = data.rfind(b"\n") + 1
    if not cut:
        if not (ended and data):
            return [], offset
        data += b"\n"
        return [data[:-1]], offset + len(data) - 1
    return data[:cut].split(b"\n")[:-1], offset + cut


def _insert(database: Database, connection: Connection, records: list[Usage]) -> tuple[int, int]:
    """How many are new, as all are but after a file's mark was lost; and how many the database does not take: a number
    or a text that no column holds must not block all after it."""

    def put(some: list[Usage]) -> int:
        with connection.begin_nested():
            new = database.insert_all(connection, tables.requests, [_request(record) for record in some])
            segments = [row for record in some for row in _segments(record)]
            if segments:
                database.insert_all(connection, tables.segments, segments)
            return new

    if not records:
        return 0, 0
    try:
        return put(records), 0
    except _UNTAKEABLE:
        new = refused = 0
    for record in records:
        try:
            new += put([record])
        except _UNTAKEABLE as error:
            refused += 1
            _log.error("record %s cannot be stored: %s", record.uid, getattr(error, "orig", None) or error)
    return new, refused


def _request(record: Usage) -> tuple[Any, ...]:
    """A row of `tables.requests`."""
    return (
        record.uid, record.request_id, record.key, record.model, record.started, _day(record.started // DAY_SECONDS),
        record.seconds, record.status, record.choices, record.currency,
    )  # fmt: skip


@lru_cache(64)
def _day(number: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(number * DAY_SECONDS))


def _segments(record: Usage) -> Iterator[tuple[Any, ...]]:
    """Rows of `tables.segments`."""
    for position, part in enumerate(record.segments):
        yield (
            record.uid, position, part.line, part.chip, part.attempt, part.prompt_tokens, part.cached_tokens,
            part.completion_tokens, part.waste_tokens, part.seconds, tables.whole(part.cost),
        )  # fmt: skip


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink()
