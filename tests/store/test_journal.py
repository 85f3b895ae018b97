"""Usage is recorded once and for good: written, folded, torn, rotated, and its processes killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, delete, func, select
from tests.store.mortal import record

import twinline.store.fold as folding
import twinline.store.journal as journals
from twinline.store import tables
from twinline.store.database import Database
from twinline.store.fold import fold
from twinline.store.journal import Journal
from twinline.store.usage import Segment, Usage, line_of, record_of

MORTAL = Path(__file__).parent / "mortal.py"
WRITERS, FOLDERS = 24, 12


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of journals alone."""
    path = tmp_path / "journal"
    path.mkdir()
    return path


def stored(database: Database) -> Counter[str]:
    with database.reading() as connection:
        return Counter(connection.execute(select(tables.requests.c.uid)).scalars())


def prompt_tokens(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.execute(select(func.sum(tables.segments.c.prompt_tokens))).scalar() or 0)


def mortal(*args: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [sys.executable, str(MORTAL), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_line_comes_back_and_any_damage_is_seen() -> None:
    written = record("a-1", 5)
    line = line_of(written)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert record_of(line[:-1]) == written
    for at in range(len(line) - 1):
        assert record_of(line[:at]) is None
        assert record_of(line[:at] + bytes([line[at] ^ 1]) + line[at + 1 : -1]) is None
    strange = msgspec.structs.replace(written, request_id="line\nbreak \x00 é 字 \u2028")
    assert record_of(line_of(strange)[:-1]) == strange
    assert line_of(strange).count(b"\n") == 1


def test_records_are_on_disk_when_write_returns_and_folded_once(database: Database, directory: Path) -> None:
    journal = Journal(directory)
    uids = [journal.next_uid() for _ in range(100)]
    assert len(set(uids)) == 100
    for number, uid in enumerate(uids):
        journal.write(record(uid, number))
    (file,) = (directory).iterdir()
    assert file.read_bytes().count(b"\n") == 100
    assert fold(database, directory).records == 100
    assert fold(database, directory).records == 0
    journal.write(record("one more", 1))
    assert fold(database, directory).records == 1
    assert file.exists()  # its writer lives
    journal.close()
    journal.close()
    assert fold(database, directory).deleted_files == 1
    assert list((directory).iterdir()) == []
    assert stored(database) == Counter([*uids, "one more"])
    assert prompt_tokens(database) == sum(range(100)) + 1
    with database.reading() as connection:
        assert connection.execute(select(tables.journal_files)).all() == []
        costs = connection.execute(select(func.sum(tables.segments.c.cost))).scalar()
    assert int(costs or 0) == 101 * 3_000_000


def test_a_lost_mark_counts_nothing_twice(database: Database, directory: Path) -> None:
    journal = Journal(directory)
    for number in range(1200):
        journal.write(record(journal.next_uid(), number))
    assert fold(database, directory).records == 1200
    with database.writing() as connection:
        connection.execute(delete(tables.journal_files))
    journal.write(record(journal.next_uid(), 1))
    assert fold(database, directory).records == 1
    assert set(stored(database).values()) == {1}
    assert prompt_tokens(database) == sum(range(1200)) + 1
    journal.close()


@pytest.mark.parametrize("cut", [1, 8, 9, 40, -2, -1])
def test_a_torn_last_line_costs_nothing_else(database: Database, directory: Path, cut: int) -> None:
    """Of a dead process; a living one may still end its line."""
    file = directory / "dead-000001.jsonl"
    lines = [line_of(record(f"u{number}", 1)) for number in range(3)]
    file.write_bytes(lines[0] + lines[1] + lines[2][:cut])
    folded = fold(database, directory)
    # Without its newline alone the line is whole.
    assert (folded.records, folded.torn, folded.deleted_files) == ((3, 0, 1) if cut == -1 else (2, 1, 1))


def test_an_unfinished_line_of_a_living_process_waits_for_its_end(database: Database, directory: Path) -> None:
    journal = Journal(directory)
    journal.write(record("first"))
    line = line_of(record("second"))
    (file,) = directory.iterdir()
    with file.open("ab") as more:
        more.write(line[:50])
        more.flush()
        assert fold(database, directory) == folding.Folded(records=1)
        more.write(line[50:])
    assert fold(database, directory) == folding.Folded(records=1)
    journal.close()
    assert stored(database) == Counter(["first", "second"])


def test_a_damaged_line_in_the_middle_is_told_and_passed(
    database: Database, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [line_of(record(f"u{number}")) for number in range(3)]
    damaged = lines[1].replace(b"finished", b"finisheD")
    (directory / "dead-000001.jsonl").write_bytes(lines[0] + damaged + lines[2])
    folded = fold(database, directory)
    assert (folded.records, folded.torn) == (2, 1)
    assert "1 damaged lines in journal dead-000001.jsonl" in caplog.text


@pytest.mark.parametrize("room", [0, 30, 100_000])
def test_a_full_disk_is_an_error_and_nothing_is_lost_when_there_is_room_again(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """`room`: what the first write that fails takes, then nothing. Of all but the last byte it is counted once, too."""
    journal = Journal(directory)
    journal.write(record("before"))
    real, takes = os.write, [room, 0, 0]

    def full(file: int, data: bytes) -> int:
        most = min(takes.pop(0), len(data) - 1)
        if not most:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:most])

    monkeypatch.setattr(os, "write", full)
    for count, uid in enumerate(("first", "second", "third"), 1):
        with pytest.raises(OSError, match=r"disk is full|No space left"):
            journal.write(record(uid))
        assert journal.waiting == count and not journal.lost
    fold(database, directory)
    monkeypatch.setattr(os, "write", real)
    journal.write(record("after"))
    assert not journal.waiting
    journal.close()
    fold(database, directory)
    assert stored(database) == Counter(["before", "first", "second", "third", "after"])


def test_room_that_comes_free_little_by_little_is_enough(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk has taken is not written to it again."""
    journal = Journal(directory)
    real, size = os.write, len(line_of(record("u0")))
    for number in range(6):
        journal.add(record(f"u{number}"))
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: size * 3 // 2]))
    for waiting in (5, 4, 3, 2, 1):
        with pytest.raises(OSError, match="its disk is full"):
            journal.commit()
        assert journal.waiting == waiting
    journal.commit()
    assert not journal.waiting and not journal.lost
    (file,) = directory.iterdir()
    assert file.stat().st_size < 10 * size
    journal.close()
    fold(database, directory)
    assert stored(database) == Counter(f"u{number}" for number in range(6))


def test_what_waits_for_a_full_disk_is_bounded(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(directory)
    real = os.write
    size = len(line_of(record("u0")))
    monkeypatch.setattr(journals, "MOST_KEPT", 3 * size + size // 2)  # times are longer and shorter texts
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:10]))
    for number in range(5):
        with pytest.raises(OSError, match="its disk is full"):
            journal.write(record(f"u{number}"))
    assert journal.waiting == 3 and journal.lost == 2
    monkeypatch.setattr(os, "write", real)
    journal.close()
    fold(database, directory)
    assert stored(database) == Counter(["u2", "u3", "u4"])


def test_a_full_disk_costs_no_time_for_all_that_waits(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(directory)
    real, sizes = os.write, list[int]()

    def full(file: int, data: bytes) -> int:
        sizes.append(len(data))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for number in range(1000):
        journal.add(record(f"u{number}"))
    with pytest.raises(OSError, match="No space left"):
        journal.commit()
    assert len(sizes) == 1 and sizes[0] < 100_000
    monkeypatch.setattr(os, "write", real)
    journal.commit()
    assert not journal.waiting
    journal.close()
    fold(database, directory)
    assert stored(database) == Counter(f"u{number}" for number in range(1000))


def test_after_its_end_nothing_is_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of its file may be another file's by then."""
    asked = []

    def full(file: int, data: bytes) -> int:
        asked.append(data)
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(directory)
    monkeypatch.setattr(os, "write", full)
    journal.add(record("late"))
    journal.close()
    journal.commit()
    assert len(asked) == 1


def test_what_no_column_holds_does_not_block_the_rest(database: Database, directory: Path) -> None:
    bad = [
        msgspec.structs.replace(record("big"), segments=[Segment("l", None, prompt_tokens=2**63 - 1, cost=1e300)]),
        msgspec.structs.replace(record("nul"), key="k\x00" * 40, currency="far too long a currency"),
        Usage("refused", "r", None, "m", 1.0, 0.0, "refused", []),
    ]
    (directory / "dead-000001.jsonl").write_bytes(b"".join(map(line_of, [record("a"), *bad, record("z")])))
    folded = fold(database, directory)
    assert folded.deleted_files == 1
    assert {"a", "z", "refused"} <= set(stored(database))
    assert "big" not in stored(database)
    assert folded.records == len(stored(database)) and folded.records + folded.torn == 5


def test_files_rotate_and_go_when_folded(database: Database, directory: Path) -> None:
    journal = Journal(directory, rotate_bytes=5_000, fsync_seconds=0.001)
    written = 0
    while len(list(directory.glob("*.jsonl"))) < 4:
        journal.write(record(journal.next_uid(), 1))
        written += 1
        assert written < 1_000_000
    fold(database, directory)
    # Of the closed ones none is left once they are synced; the one that is written to and its spare stay.
    journal.close()
    fold(database, directory)
    assert list(directory.iterdir()) == []
    assert sum(stored(database).values()) == prompt_tokens(database) == written


def test_folds_at_the_same_time_count_once(database: Database, url: str, directory: Path) -> None:
    journal = Journal(directory, rotate_bytes=50_000, fsync_seconds=0.001)
    done = threading.Event()
    failures: list[BaseException] = []

    def keep_folding() -> None:
        own = Database(url)
        try:
            while not done.is_set():
                fold(own, directory)
        except BaseException as error:
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=keep_folding) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        journal.write(record(journal.next_uid(), 1))
    journal.close()
    done.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    fold(database, directory)
    assert sum(stored(database).values()) == prompt_tokens(database) == 3000
    assert list((directory).iterdir()) == []


def test_a_fold_holds_the_database_shortly_and_not_for_the_disk(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for limits waits as long. A journal goes once what was folded of it is on disk for good."""
    journal = Journal(directory)
    for number in range(1000):
        journal.write(record(journal.next_uid(), number))
    journal.close()
    (file,) = directory.iterdir()
    size = file.stat().st_size
    stored_before: list[int] = []
    held = False
    writing, read, sync = Database.writing, folding.record_of, Database.sync

    @contextlib.contextmanager
    def short(self: Database, *, durable: bool = True) -> Iterator[Connection]:
        nonlocal held
        assert not durable, "the commit waits for the disk, and everybody for it"
        stored_before.append(stored(database).total())
        with writing(self, durable=durable) as connection:
            held = True
            yield connection
        held = False

    def outside(line: bytes) -> Usage | None:
        assert not held, "lines are read while others wait"
        return read(line)

    def synced(self: Database) -> None:
        assert not held and file.exists() and stored(database).total() == 1000
        with monkeypatch.context() as real:
            real.setattr(Database, "writing", writing)
            sync(self)
        synced_with.append(file.name)

    synced_with: list[str] = []
    monkeypatch.setattr(Database, "writing", short)
    monkeypatch.setattr(Database, "sync", synced)
    monkeypatch.setattr(folding, "record_of", outside)
    assert fold(database, directory) == folding.Folded(records=1000, deleted_files=1)
    assert synced_with == [file.name]
    assert max(b - a for a, b in pairwise(stored_before)) <= 1000 * folding.BATCH_BYTES / size + 5 < 300


def test_kill_9_of_writers_and_folders_loses_nothing_and_counts_nothing_twice(
    database: Database, url: str, directory: Path
) -> None:
    writers = mortal("writers", directory, WRITERS, 1)
    folders = mortal("folders", directory, url, FOLDERS, 2)
    written, _ = writers.communicate(timeout=90)
    killed, _ = folders.communicate(timeout=90)
    assert writers.returncode == folders.returncode == 0
    acknowledged = [json.loads(line) for line in written.splitlines()]
    assert len(acknowledged) == WRITERS
    assert not any("ended" in uids for uids in acknowledged)  # all died by the kill
    fold(database, directory)
    found = stored(database)
    known = {uid for uids in acknowledged for uid in uids}
    assert all(acknowledged)
    assert int(killed) > 0
    assert known - found.keys() == set()
    assert set(found.values()) == {1}
    # At most the one record that a process had written and not yet told of.
    assert len(found) - len(known) <= WRITERS
    with database.reading() as connection:
        segments = connection.execute(select(func.count()).select_from(tables.segments)).scalar()
    assert segments == 2 * len(found)
    assert [path for path in directory.iterdir() if path.suffix == ".jsonl"] == []


def test_what_is_added_is_on_disk_after_one_write(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(directory)
    writes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: writes.append(data) or real(file, data))
    for number in range(3):
        journal.add(record(f"u{number}"))
    assert not writes
    journal.commit()
    journal.commit()
    assert len(writes) == 1
    journal.add(record("u3"))
    journal.close()
    assert len(writes) == 2, "what was added last is written at the end"
    fold(database, directory)
    assert stored(database) == Counter(["u0", "u1", "u2", "u3"])


def test_a_disk_that_fills_inside_several_records_counts_none_twice(
    database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(directory)
    for name in ("first", "second", "third"):
        journal.add(record(name))
    room = len(line_of(record("first"))) + 20
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:room]))
    with pytest.raises(OSError, match=f"took {room} of"):
        journal.commit()
    monkeypatch.setattr(os, "write", real)
    journal.add(record("after"))
    journal.commit()
    journal.close()
    fold(database, directory)
    assert stored(database) == Counter(["first", "second", "third", "after"])
