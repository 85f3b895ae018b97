"""Running tools: real processes that fail, hang, flood and write files."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from twinline.cards.execute import MOST_BYTES, Processes


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, mode: int = 0o755) -> None:
    path = tmp_path / "some-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_output_locale_arguments_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    tool(tmp_path, monkeypatch, 'echo "$LC_ALL $1 $2"; echo oops >&2; echo \'{"a": 1}\' > info.json; exit 3')
    ran = Processes().run(["some-smi", "a;b", "$(c)"], 10)
    assert (ran.code, ran.out, ran.err, ran.trouble) == (3, "C a;b $(c)\n", "oops\n", "failed")
    assert ran.files == {"info.json": '{"a": 1}\n'}
    assert not (tmp_path / "info.json").exists()
    assert not Path("info.json").exists()


def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, f"echo begun; sleep 300 & echo $! > {tmp_path}/child; wait")
    ran = Processes().run(["some-smi"], 3.0)
    assert (ran.trouble, ran.out) == ("timeout", "begun\n")
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and _state(child) != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or _state(child) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"


def test_a_tool_that_floods_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, "exec yes aaaaaaaaaaaaaaaa")
    ran = Processes().run(["some-smi"], 60)
    assert ran.trouble == "too-long"
    assert len(ran.out) == MOST_BYTES


def test_a_tool_that_is_not_there_or_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes().run(["no-such-smi"], 1).trouble == "missing"
    tool(tmp_path, monkeypatch, "", mode=stat.S_IRUSR)
    assert Processes().run(["some-smi"], 1).trouble == "missing"
    tool(tmp_path, monkeypatch, "")
    (tmp_path / "some-smi").chmod(0o755)
    (tmp_path / "some-smi").write_bytes(b"\x7fELF broken")
    assert Processes().run(["some-smi"], 1).trouble == "failed"


def test_bytes_that_are_no_text_are_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, r"printf '\377\376ok'")
    assert Processes().run(["some-smi"], 10).out.endswith("ok")


def test_a_tool_that_the_driver_holds_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an uninterruptible sleep a process does not even die of SIGKILL."""
    tool(tmp_path, monkeypatch, "exec sleep 60")
    killpg, held = os.killpg, []
    monkeypatch.setattr("os.killpg", lambda pid, number: held.append(pid))
    began = time.monotonic()
    try:
        ran = Processes().run(["some-smi"], 0.2)
        assert ran.trouble == "timeout" and ran.code is None
        assert time.monotonic() - began < 30
    finally:
        for pid in set(held):
            killpg(pid, signal.SIGKILL)
