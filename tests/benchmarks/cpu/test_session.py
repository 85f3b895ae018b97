"""Engines in processes of their own: kept, asked, ended, and made room for. The engine is the embedded tiny-r1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.cpu.contenders import ROOT
from benchmarks.cpu.session import Failed, Session, Sessions, Wanted

from benchmarks.cpu import family

TINY = ROOT / "src" / "twinline" / "models" / "tiny-r1"


def wanted(name: str = "native", model: Path = TINY, need: int = 1) -> Wanted:
    return Wanted(name, Path(sys.executable), "native", model, "float32", 1, need)


def test_an_engine_is_kept_until_its_memory_is_needed(tmp_path: Path) -> None:
    free = 100
    sessions = Sessions(tmp_path, available=lambda: free)
    try:
        first = sessions.get(wanted())
        assert sessions.get(wanted()) is first
        found = first.ask("decode", users=2, vocab=1024, prompt=8, new=4)
        assert found["end_to_end"] > 0 and found["peak_bytes"] > 2**20
        assert first.ask("facts")["cache_bytes"] > 0
        with pytest.raises(Failed, match="native: KeyError"):
            first.ask("dance", vocab=1024)
        free = 0
        sessions.make_room(1)
        assert not sessions._open
        with pytest.raises(Failed, match=r"ended: "):
            first.ask("facts")
    finally:
        sessions.close()


def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"native: .*config\.json"):
        Session(wanted(model=tmp_path), tmp_path / "log")


def test_a_family_is_counted_with_all_that_it_started() -> None:
    code = "import subprocess,sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        parent.stdout.readline()
        found = family.family(parent.pid)
        assert len(found) == 2
        assert family.peak_bytes(parent.pid) > family.field(Path(f"/proc/{parent.pid}/status"), "VmHWM")
        parent.stdin.write(b"\n")
        parent.stdin.close()
    assert family.start_tick(parent.pid) == 0
    assert family.start_tick(os.getpid()) > 0
    assert family.available_bytes() > 0
