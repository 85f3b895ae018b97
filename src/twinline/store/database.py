"""The database: opened by URL, brought up to date, read and written in short transactions.

Owns what differs between SQLite and PostgreSQL and the upgrade on opening. Must not know what the tables mean.

SQLite: WAL, so that readers and one writer do not wait for each other; a writing transaction takes the write lock at
its beginning (BEGIN IMMEDIATE): one that read first and then wants to write may fail at once instead of waiting. A
writer that waits for the disk keeps every other waiting, limits of keys among them: so SQLite's log is synced apart
(`sync`), and moved into the database file by the one process that can wait for it (`tends_log`). A connection holds the
file that it opened: where another one was put in its place, as a backup is, it is let go of and made anew.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.sql.dml import Insert

from twinline.store.home import database_url, journal_directory, own_database

REVISIONS = ("0001",)  # of the migrations, oldest first
POSTGRESQL_PORT = 5432
LOCK_SECONDS = 30  # how long a writer waits for another
# How long SQLite's log gets until it is moved: by who tends it, and where nobody does. Whoever writes first after that
# waits for the disk once.
TENDED_PAGES, UNTENDED_PAGES = 4_000, 16_000
_UPGRADE_LOCK = 0x7477_696E_6C69_6E65  # PostgreSQL's advisory lock: the letters "twinline"
# libpq's: seconds to connect, milliseconds until sent data must be acknowledged
_SERVER_GONE = {"connect_timeout": 5, "tcp_user_timeout": 10_000}


class StoreError(Exception):
    """The store cannot be used; its text says why and what to do."""


class Database:
    """An open database with today's tables. Its methods block: a gateway calls them from threads. `tends_log`: its
    writers move SQLite's log into the database file, in good time and after their commit.

    Raises StoreError if it cannot be opened, or was made by a newer Twinline.
    """

    def __init__(self, url: str | None = None, *, tends_log: bool = False) -> None:
        self.url = _read(url or database_url())
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._tends_log = tends_log
        self._inserts: dict[str, tuple[str, bool]] = {}  # by table: the statement, and whether its values come by place
        self.engine = self._connect()
        try:
            self._upgrade()
        except DBAPIError as error:
            self.engine.dispose()
            raise StoreError(f"cannot open {self.shown}: {_first_line(error)}") from error
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def journals(self) -> Path:
        """Where the journals are kept that go into it. One database is one, however its URL is spelt."""
        if not self.sqlite:
            _, given = self.url.get_dialect()().create_connect_args(self.url)  # fields of the query win, as there
            host, port = given.get("host", ""), given.get("port", POSTGRESQL_PORT)
            host = host if host.startswith("/") else host.casefold()  # a socket's directory is a path
            return journal_directory(f"{host}:{port}/{given.get('dbname') or given.get('user')}")
        file = os.path.realpath(self.url.database or "")
        return journal_directory(None if file == os.path.realpath(own_database()) else file)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction. Not `durable`: it may be lost if the machine (not the process) goes down right after."""
        options = {"twinline_writes": "durable" if durable else "quick"}
        with self.engine.connect() as connection, connection.execution_options(**options).begin():
            if not self.sqlite and not durable:
                connection.execute(text("SET LOCAL synchronous_commit TO OFF"))
            yield connection

    def sync(self) -> None:
        """What was committed, by whomever, stays even if the machine goes down. No lock is held meanwhile."""
        if not self.sqlite:
            with self.writing() as connection:
                connection.execute(text("SELECT txid_current()"))  # its commit is flushed, and with it all before it
            return
        with contextlib.suppress(FileNotFoundError):  # then all of it is in the database file, and synced
            log = os.open(f"{self.url.database}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(log)
            finally:
                os.close(log)

    def insert_new(self, table: Table) -> Insert:
        """An insert that leaves a row alone whose primary key is there."""
        insert = sqlite.insert if self.sqlite else postgresql.insert
        return insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key.columns))

    def insert_all(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
        """`insert_new` of many rows, whose values come in the order of the table's columns; how many were new. By the
        driver's own means: SQLAlchemy's handling of parameters would take longer than SQLite's insertion."""
        known = self._inserts.get(table.name)
        if known is None:
            compiled = self.insert_new(table).compile(dialect=self.engine.dialect)
            known = self._inserts[table.name] = str(compiled), compiled.positional
        statement, positional = known
        names = [column.name for column in table.columns]
        given: Any = rows if positional else [dict(zip(names, row, strict=True)) for row in rows]
        return connection.exec_driver_sql(statement, given).rowcount

    def put(self, table: Table, columns: Sequence[str]) -> Insert:
        """An insert that overwrites `columns` of a row whose primary key is there."""
        if self.sqlite:
            lite = sqlite.insert(table)
            return lite.on_conflict_do_update(
                index_elements=list(table.primary_key.columns), set_={name: lite.excluded[name] for name in columns}
            )
        post = postgresql.insert(table)
        return post.on_conflict_do_update(
            index_elements=list(table.primary_key.columns), set_={name: post.excluded[name] for name in columns}
        )

    def close(self) -> None:
        self.engine.dispose()

    def _connect(self) -> Engine:
        if self.sqlite:
            if self.url.database in (None, "", ":memory:"):
                raise StoreError("SQLite in memory cannot be shared by processes; name a file: sqlite:////path/to.db")
            try:
                file = Path(self.url.database or "")
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                file.touch(mode=0o600)  # SQLite would make it as the process's umask says
            except OSError as error:
                raise StoreError(f"cannot make the directory of {self.shown}: {error.strerror}") from error
        try:
            engine = create_engine(
                self.url,
                pool_pre_ping=not self.sqlite,
                connect_args={"timeout": LOCK_SECONDS} if self.sqlite else _SERVER_GONE,
            )
        except ModuleNotFoundError as error:
            raise StoreError(f"{error.name} is not installed; PostgreSQL needs twinline[postgres]") from error
        if self.sqlite:
            pages = TENDED_PAGES if self._tends_log else UNTENDED_PAGES
            event.listen(engine, "do_connect", partial(_opens_what_is_there, file))
            event.listen(engine, "connect", partial(_prepare_sqlite, pages))
            event.listen(engine, "checkout", partial(_still_opens, file))
            event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _upgrade(self) -> None:
        """To the newest tables. Processes that open at once wait for the first; the rest find nothing to do."""
        with self.reading() as connection:
            if _revision(connection) == REVISIONS[-1]:
                return
        with self.writing() as connection:
            if not self.sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
            found = _revision(connection)
            if found is not None and found not in REVISIONS:
                raise StoreError(
                    f"{self.shown} is at revision {found}, newer than {REVISIONS[-1]}, the last one that "
                    "this Twinline knows; upgrade Twinline"
                )
            if found != REVISIONS[-1]:
                from twinline.store.upgrade import upgrade  # Alembic takes a tenth of a second, once in a lifetime

                upgrade(connection)


@contextmanager
def opened() -> Iterator[Database]:
    """The database of this home, for a verb of the command line. What it raises meanwhile is a StoreError, too."""
    database = Database()
    try:
        yield database
    except DBAPIError as error:
        raise StoreError(f"{database.shown}: {_first_line(error)}") from error
    finally:
        database.close()


def _read(url: str) -> URL:
    try:
        read = make_url(url)
    except ArgumentError as error:
        raise StoreError("TWINLINE_DATABASE_URL is not a URL such as postgresql://user@host/database") from error
    if read.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return read.set(drivername="postgresql+psycopg")
    if read.get_backend_name() != "sqlite":
        raise StoreError(f"{read.drivername} is not a known kind of database; use sqlite or postgresql")
    return read


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _opens_what_is_there(file: Path, dialect: object, record: Any, *arguments: object) -> None:
    """SQLite would make a file that is gone, empty and for everybody to read."""
    record.info["file"] = _which(file)
    if record.info["file"] is None:
        raise sqlite3.OperationalError(f"{file} is gone")


def _still_opens(file: Path, connection: object, record: Any, proxy: object) -> None:
    if record.info["file"] != _which(file):
        raise DisconnectionError(f"{file} is another file than it was")


def _which(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_sqlite(log_pages: int, connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    connection.execute(f"PRAGMA busy_timeout={LOCK_SECONDS * 1000}")
    connection.execute(f"PRAGMA wal_autocheckpoint={log_pages}")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError:  # a change of the mode does not wait for its lock
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            raise


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("twinline_writes")
    if writes:
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if writes == 'durable' else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _first_line(error: DBAPIError) -> str:
    told = str(error.orig).strip().splitlines()
    return told[0] if told else type(error.orig).__name__


__all__ = ["Database", "OperationalError", "StoreError", "opened"]
