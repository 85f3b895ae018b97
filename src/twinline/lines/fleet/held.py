"""Which replicas were drained by hand: they stay so when the control side restarts.

Owns the file. Knows names only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

HELD = "held.json"
BY_HAND = "drained by hand; `twinline up --resume` or `apply` brings it back"  # what such a line says of itself


def read(directory: Path) -> frozenset[str]:
    try:
        return frozenset(msgspec.json.decode((directory / HELD).read_bytes(), type=list[str]))
    except (OSError, msgspec.MsgspecError):
        return frozenset()


def mended(directory: Path, names: Iterable[str]) -> bool:
    """Writes `names` in place of a file that cannot be read; whether there was one."""
    with contextlib.suppress(FileNotFoundError):
        try:
            msgspec.json.decode((directory / HELD).read_bytes(), type=list[str])
        except msgspec.MsgspecError:
            write(directory, names)
            return True
    return False


def write(directory: Path, names: Iterable[str]) -> None:
    """Synced: a line that somebody took away must not come back because power failed."""
    path = directory / HELD
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(sorted(names)))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
