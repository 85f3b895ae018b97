"""Running a tool: no shell, no locale but C, bounded in time and output, in a folder of its own.

Owns that. Must not know any tool or what it prints.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

import msgspec

MOST_BYTES = 4 << 20
MOST_IN_FILE = 4 << 20


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended. `trouble` is empty where it ran and exited with 0; `files` are texts that it wrote."""

    code: int | None = None
    out: str = ""
    err: str = ""
    files: Mapping[str, str] = {}
    trouble: Literal["", "missing", "timeout", "permission", "failed", "too-long"] = ""


class Runner(Protocol):
    """Runs a command and says how it ended; never raises for what the command does."""

    def find(self, tool: str) -> str | None:
        """The path of a tool; None if it is not there."""

    def run(self, command: Sequence[str], timeout: float) -> Ran: ...

    def stop(self) -> None:
        """Ends what runs, from another thread; what is asked from now on is not run."""


class Processes:
    """Runs commands as processes of this machine, several at once if asked from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                _end(process)

    def find(self, tool: str) -> str | None:
        return shutil.which(tool)

    def run(self, command: Sequence[str], timeout: float) -> Ran:
        path = self.find(command[0])
        if path is None:
            return Ran(trouble="missing")
        env = {**os.environ, "LC_ALL": "C", "LANG": "C", "LANGUAGE": "", "NO_COLOR": "1", "TERM": "dumb"}
        with tempfile.TemporaryDirectory(prefix="twinline-look-") as folder:
            try:
                with self._lock:  # so that none is started behind the back of stop()
                    if self._stopped:
                        return Ran(trouble="failed", err="the look was ended")
                    process = subprocess.Popen(
                        [path, *command[1:]],
                        cwd=folder,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        start_new_session=True,
                    )
                    self._running.add(process)
            except PermissionError as exc:
                return Ran(trouble="permission", err=str(exc))
            except OSError as exc:
                return Ran(trouble="failed", err=str(exc))
            try:
                return _followed(process, timeout, Path(folder))
            finally:
                with self._lock:
                    self._running.discard(process)


class _Drain(threading.Thread):
    """Reads a pipe to its end and keeps its first MOST_BYTES; `full` is called once if there are more."""

    def __init__(self, pipe: IO[bytes], process: subprocess.Popen[bytes]):
        super().__init__(daemon=True)
        self.pipe, self.process, self.kept, self.full = pipe, process, bytearray(), False
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            while chunk := self.pipe.read1(65536):  # type: ignore[attr-defined]
                self.kept += chunk[: max(0, MOST_BYTES - len(self.kept))]
                if len(self.kept) >= MOST_BYTES and not self.full:
                    self.full = True
                    _end(self.process)

    @property
    def text(self) -> str:
        return bytes(self.kept).decode("utf-8", "replace")


def _followed(process: subprocess.Popen[bytes], timeout: float, folder: Path) -> Ran:
    assert process.stdout is not None and process.stderr is not None
    out, err = _Drain(process.stdout, process), _Drain(process.stderr, process)
    late = False
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end(process)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that the driver holds does not die: it is left behind
        process.wait(1.0)
    for drain in (out, err):  # a grandchild in a session of its own may hold the pipe
        drain.join(1.0)
    code = process.returncode
    trouble: Literal["", "timeout", "failed", "too-long"] = "failed" if code else ""
    if out.full or err.full:
        trouble = "too-long"
    elif late:
        trouble = "timeout"
    return Ran(code=code, out=out.text, err=err.text, files=_files(folder), trouble=trouble)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the command and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _files(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir())[:20]:
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_IN_FILE:
            found[path.name] = path.read_text("utf-8", "replace")
    return found
