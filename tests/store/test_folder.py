"""The process that folds: it does so by itself, and once more when its gateway ends, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tests.store.mortal import record

from twinline.store import tables
from twinline.store.database import Database
from twinline.store.folder import keep_folding
from twinline.store.journal import Journal

GATEWAY = """
import asyncio, sys
from pathlib import Path
from tests.store.mortal import record
from twinline.store.database import Database
from twinline.store.folder import keep_folding
from twinline.store.journal import Journal

async def main(url, directory):
    journal = Journal(directory)
    folding = asyncio.create_task(keep_folding(Database(url), directory, 3600.0))
    await asyncio.sleep(1.0)
    (directory / "a-000001.jsonl").write_bytes(b"damaged: told of to nobody, who is no reason to stop\\n")
    for _ in range(50):
        journal.write(record(journal.next_uid()))
    print("written", flush=True)
    await folding

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


def requests(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.execute(select(func.count()).select_from(tables.requests)).scalar() or 0)


def test_it_folds_by_itself_and_at_the_end(database: Database, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")

    async def go() -> None:
        folding = asyncio.create_task(keep_folding(database, tmp_path / "journal", 0.1))
        journal.write(record(journal.next_uid()))
        async with asyncio.timeout(60):
            while requests(database) < 1:
                await asyncio.sleep(0.05)
        folding.cancel()
        journal.write(record(journal.next_uid()))
        await asyncio.gather(folding, return_exceptions=True)

    asyncio.run(go())
    journal.close()
    assert requests(database) == 2


def test_what_it_has_to_say_is_in_the_gateways_log(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As one of its lines, whatever form that has: beside them it would be no JSON."""
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "left-000001.jsonl").write_bytes(b"damaged\n")

    async def go() -> None:
        folding = asyncio.create_task(keep_folding(database, tmp_path / "journal", 0.1))
        async with asyncio.timeout(60):
            while "1 damaged lines in journal left-000001.jsonl" not in caplog.text:
                await asyncio.sleep(0.05)
        folding.cancel()
        await asyncio.gather(folding, return_exceptions=True)

    asyncio.run(go())
    assert "damaged" not in capfd.readouterr().err


def test_the_gateway_is_killed(database: Database, url: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [sys.executable, "-c", GATEWAY, url, str(tmp_path / "journal")]
    gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert gateway.stdout is not None
    assert gateway.stdout.readline() == "written\n"
    gateway.send_signal(signal.SIGKILL)
    gateway.wait()
    gateway.stdout.close()
    end = time.monotonic() + 60
    while requests(database) < 50 and time.monotonic() < end:
        time.sleep(0.05)
    assert requests(database) == 50
    while list((tmp_path / "journal").glob("*.jsonl")) and time.monotonic() < end:
        time.sleep(0.05)
    assert list((tmp_path / "journal").iterdir()) == []
