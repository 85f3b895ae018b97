"""A home of its own for every test, under a path short enough for sockets, and a driver of doubles."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinline.lines import drivers


@pytest.fixture(autouse=True)
def twinline_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tw"))
    monkeypatch.setenv("TWINLINE_HOME", str(path))
    monkeypatch.setitem(drivers.DRIVERS, "double", "tests.lines.fleet.harness:Double")
    monkeypatch.setitem(drivers.DRIVERS, "remote", "tests.lines.fleet.harness:Remote")
    yield path
    shutil.rmtree(path, ignore_errors=True)
