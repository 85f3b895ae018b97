"""Which replicas were drained by hand: they stay so when the control side restarts.

Owns the file. Knows names only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

HELD = "held.json"


def read(directory: Path) -> frozenset[str]:
    try:
        return frozenset(msgspec.json.decode((directory / HELD).read_bytes(), type=list[str]))
    except (OSError, msgspec.MsgspecError):
        return frozenset()


def write(directory: Path, names: Iterable[str]) -> None:
    path = directory / HELD
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(sorted(names)))
    fresh.replace(path)
