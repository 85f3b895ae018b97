"""Databases to test on: each test that takes `url` or `database` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.store.postgres import binaries, cluster

from twinline.store.database import Database

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server's URL."""
    pytest.importorskip("psycopg", reason="PostgreSQL is not tested: install twinline[postgres]")
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not tested: no initdb and postgres here (Debian: apt-get install postgresql)")
    with cluster(found) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database; on PostgreSQL an empty schema, which is made much more quickly."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    import psycopg

    server: str = request.getfixturevalue("postgres")
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server}&options=-csearch_path%3D{name}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()
