"""Processes that are killed -9 at random moments: a script, so that each is forked from one that is ready and alone.

`mortal.py writers DIRECTORY ROUNDS SEED` prints the uids that `Journal.write` returned for, one JSON list a process.
`mortal.py folders DIRECTORY URL ROUNDS SEED` prints how many of its processes were killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import twinline.store.fold as folding
from twinline.store.database import Database
from twinline.store.journal import Journal
from twinline.store.usage import Segment, Usage


def record(uid: str, number: int = 0) -> Usage:
    """One whose tokens can be added up: `number` prompt tokens, on two lines."""
    segments = [
        Segment("fast", "chip-a", 1, number, 0, 2, 0.5, 0.001),
        Segment("slow", None, 2, 0, 0, 3, 0.5, 0.002, 7),
    ]
    return Usage(uid, f"req-{uid}", "key_1", "r1", time.time(), 1.0, "finished", segments, 1, "CNY")


def killed_after(seconds: float, work: Callable[[], None]) -> bytes:
    """What `work` printed until it was killed so long after its first word, or ended by itself before."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(out)
            os.dup2(into, 1)
            work()
        finally:
            os._exit(0)
    os.close(into)
    told = os.read(out, 1 << 20)
    end = time.monotonic() + seconds
    os.set_blocking(out, False)
    while time.monotonic() < end:
        try:
            told += os.read(out, 1 << 20)
        except BlockingIOError:
            time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.set_blocking(out, True)
    while part := os.read(out, 1 << 20):
        told += part
    os.close(out)
    status = os.waitpid(child, 0)[1]
    return told if os.WIFSIGNALED(status) else told + b"ended\n"


def write_on(directory: Path) -> None:
    journal = Journal(directory, rotate_bytes=20_000, fsync_seconds=0.002)
    for number in range(1_000_000):
        uid = journal.next_uid()
        journal.write(record(uid, number))
        os.write(1, uid.encode() + b"\n")
        if number % 50 == 0:
            time.sleep(0.001)


def writers(directory: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        told = killed_after(rng.uniform(0.0, 0.06), lambda: write_on(directory))
        print(json.dumps(told.decode().splitlines()), flush=True)


def folders(directory: Path, url: str, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    folding.BATCH_BYTES = 8_000  # many transactions a file

    def work() -> None:
        database = Database(url)
        os.write(1, b"begun\n")
        folding.fold(database, directory)

    killed = 0
    for number in range(rounds):
        killed += b"ended" not in killed_after(rng.uniform(0.0, 0.1) if number else 0.0, work)
    print(killed, flush=True)


if __name__ == "__main__":
    role, where, *rest = sys.argv[1:]
    if role == "writers":
        writers(Path(where), *map(int, rest))
    else:
        folders(Path(where), rest[0], *map(int, rest[1:]))
