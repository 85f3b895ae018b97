"""A process that folds beside the gateway, and the gateway's handle on it.

Owns when folding happens. Must not know how (`fold.py`). It is a process of its own because folding a record costs more
than everything else that is done for it here, and a thread would take that from the streams. For the same reason it
tends SQLite's log.

It ends when its standard input does, with a last fold: also when the gateway is killed nothing waits in a journal.
What it has to say goes through the gateway's log, whose form is the gateway's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

from twinline.store.database import Database
from twinline.store.fold import fold
from twinline.store.home import DATABASE_VARIABLE

FOLD_SECONDS = 5.0
END_SECONDS = 10.0
GONE_SECONDS = 0.2  # a killed process closes its pipes a moment before it lets go of its journals
MOST_TOLD = 1 << 20  # bytes of a line
_log = logging.getLogger(__name__)


async def keep_folding(database: Database, directory: Path, seconds: float = FOLD_SECONDS) -> None:
    """Keeps such a process until cancelled; several gateways may each have one. Raises OSError if none can start."""
    # By the environment: a command line, and with it a password, is everybody's to read.
    environment = {**os.environ, DATABASE_VARIABLE: database.url.render_as_string(hide_password=False)}
    while True:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, str(directory), str(seconds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=environment, limit=MOST_TOLD,
        )  # fmt: skip
        telling = asyncio.create_task(_told_by(child))
        try:
            code = await child.wait()
            _log.warning("the folding process ended with %d; usage stays in its journals until the next", code)
        finally:
            await _end(child)
            await telling
        await asyncio.sleep(seconds)


async def _told_by(child: asyncio.subprocess.Process) -> None:
    assert child.stderr is not None
    while line := await child.stderr.readline():
        _log.warning("%s", line.decode("utf-8", "replace").rstrip())


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    assert child.stdin is not None
    child.stdin.close()
    try:
        async with asyncio.timeout(END_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def main(directory: Path, seconds: float) -> int:
    """Folds every `seconds` until standard input ends. What fails is tried again; nothing is lost meanwhile."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    logging.basicConfig(format="%(message)s")  # whose errors it swallows: the gateway that reads may be gone
    os.nice(10)
    database: Database | None = None
    failing = ended = False
    while True:
        try:
            if database is None:
                database = Database(tends_log=True)
            fold(database, directory)
            failing = False
        except Exception as error:
            if not failing:
                _log.error("usage is not folded for now: %s", getattr(error, "orig", None) or error)
            failing = True
        if ended:
            return int(failing)
        ready, _, _ = select.select([0], [], [], seconds)
        ended = bool(ready) and not os.read(0, 4096)
        if ended:
            time.sleep(GONE_SECONDS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
