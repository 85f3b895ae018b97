"""Opening: the tables are made once and equal their description, whoever opens, however many at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text
from sqlalchemy.engine import make_url

from twinline.store import tables
from twinline.store.database import REVISIONS, Database, OperationalError, StoreError
from twinline.store.home import database_url, home

OPENER = "import sys; from twinline.store.database import Database; Database(sys.argv[1]).close()"


def test_migrations_lead_to_the_tables(database: Database) -> None:
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [REVISIONS[-1]]
        indexes = {index["name"] for index in inspect(connection).get_indexes("keys")}
    assert "keys_live_name" in indexes


def test_many_processes_open_an_empty_database_at_once(url: str) -> None:
    openers = [
        subprocess.Popen([sys.executable, "-c", OPENER, url], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    told = [opener.communicate(timeout=120)[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, told
    database = Database(url)
    with database.reading() as connection:
        assert len(connection.execute(text("SELECT version_num FROM alembic_version")).all()) == 1
    database.close()


def test_opening_again_keeps_what_is_there(database: Database, url: str) -> None:
    with database.writing() as connection:
        connection.execute(insert(tables.revisions).values(subject="x", number=7))
    again = Database(url)
    with again.reading() as connection:
        assert connection.execute(select(tables.revisions.c.number)).scalar() == 7
    again.close()


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.writing() as connection:
        connection.execute(insert(tables.revisions).values(subject="x", number=7))
        raise RuntimeError
    with database.reading() as connection:
        assert connection.execute(select(tables.revisions)).all() == []


def test_a_database_of_a_newer_twinline_is_refused(database: Database, url: str) -> None:
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"9999.*upgrade Twinline"):
        Database(url)


def test_sqlite_is_in_wal_mode_and_private(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'store.db'}")
    with database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    database.close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_what_was_committed_quickly_is_synced_apart(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), real(file)))
    with database.writing(durable=False) as connection:
        connection.execute(insert(tables.revisions).values(subject="s", number=1))
    database.sync()
    if database.sqlite:
        assert synced == [Path(f"{database.url.database}-wal").stat().st_ino]
        database.close()  # the last one to leave moves the log into the database file
        database.sync()
        assert len(synced) == 1


def test_one_process_tends_the_log_of_sqlite_and_others_leave_it_alone(tmp_path: Path) -> None:
    """Moving it waits for the disk twice; a gateway would answer nobody meanwhile whose key has limits."""

    def written(tends: bool) -> int:
        database = Database(f"sqlite:///{tmp_path / str(tends) / 'store.db'}", tends_log=tends)
        file = tmp_path / str(tends) / "store.db"
        for start in range(0, 6000, 1000):
            with database.writing(durable=False) as connection:
                rows = [{"subject": f"{n}", "number": n} for n in range(start, start + 1000)]
                connection.execute(insert(tables.revisions), rows)
                connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS wide (x BLOB)")
                connection.exec_driver_sql("INSERT INTO wide VALUES (zeroblob(4000000))")  # a thousand pages
        size = file.stat().st_size
        database.close()
        return size

    assert written(True) > 4_000_000 * 3
    assert written(False) < 1_000_000


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://", "cannot be shared"),
        ("mysql://x@y/z", "not a known kind"),
        ("nonsense", "is not a URL"),
        ("sqlite:////dev/null/store.db", "cannot make the directory"),
    ],
)
def test_what_cannot_be_opened_says_why(url: str, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        Database(url)


def test_no_password_in_an_error() -> None:
    pytest.importorskip("psycopg", reason="needs twinline[postgres]")
    with pytest.raises(StoreError) as caught:
        Database("postgresql://someone:pass-not-shown@127.0.0.1:1/none")
    assert "pass-not-shown" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_where_things_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINLINE_HOME", str(tmp_path))
    monkeypatch.delenv("TWINLINE_DATABASE_URL", raising=False)
    assert home() == tmp_path
    assert database_url() == f"sqlite:///{tmp_path}/twinline.db"
    monkeypatch.setenv("TWINLINE_DATABASE_URL", "postgresql://h/d")
    assert database_url() == "postgresql://h/d"


def test_each_database_has_journals_of_its_own_however_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TWINLINE_DATABASE_URL", raising=False)

    def journals(url: str | None) -> Path:
        database = Database.__new__(Database)  # not opened: no server is there
        database.url = make_url(url or database_url())
        database.sqlite = database.url.get_backend_name() == "sqlite"
        return database.journals

    own = journals(None)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert own == tmp_path / "home" / "journal"
    assert (
        journals(f"sqlite:///{tmp_path}/link/twinline.db") == own == journals(f"sqlite:///{tmp_path}/home/twinline.db")
    )
    monkeypatch.chdir(tmp_path)
    assert journals("sqlite:///home/twinline.db") == own
    there = journals("postgresql://me:secret@Host/d")
    assert there == journals("postgresql://you@host:5432/d?password=x") == journals("postgresql+psycopg://host/d")
    assert there == journals("postgresql://me@/d?host=host") == journals("postgresql://host/e?dbname=d")
    others = (
        *("postgresql://host:5433/d", "postgresql://host/e", "postgresql://host/d?port=1", "sqlite:///x.db"),
        *("postgresql:///d?host=/run/a", "postgresql:///d?host=/run/b", "postgresql:///d?host=/run/a&port=1"),
        *("postgresql://me@host", "postgresql://you@host", "postgresql:///d?host=a&host=b"),
    )
    assert len({own, there, *map(journals, others)}) == 2 + len(others)


def test_another_file_in_its_place_is_what_is_used_from_then_on(tmp_path: Path) -> None:
    def numbers(of: Database) -> list[int]:
        with of.reading() as connection:
            return list(connection.execute(select(tables.revisions.c.number)).scalars())

    file, other = tmp_path / "store.db", tmp_path / "backup.db"
    running, backup = Database(f"sqlite:///{file}"), Database(f"sqlite:///{other}")
    with running.reading(), running.writing() as connection:  # two connections
        connection.execute(insert(tables.revisions).values(subject="x", number=7))
    with backup.writing() as connection:
        connection.execute(insert(tables.revisions).values(subject="x", number=3))
    backup.close()
    for part in ("", "-wal", "-shm"):
        (tmp_path / f"store.db{part}").rename(tmp_path / f"away.db{part}")
    with pytest.raises(OperationalError, match="is gone"):
        numbers(running)
    assert not file.exists()
    other.rename(file)
    assert numbers(running) == [3]
    with running.reading(), running.writing() as connection:
        connection.execute(insert(tables.revisions).values(subject="y", number=4))
    again = Database(f"sqlite:///{file}")
    assert numbers(again) == [3, 4]
    again.close()
    running.close()
