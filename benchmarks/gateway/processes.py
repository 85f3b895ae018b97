"""Processes pinned to a core: start, cost in CPU time and memory, stop.

Owns /proc. Must not know what the processes do. What a process starts counts with it, in whatever session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 10.0


class StartFailed(Exception):
    """A process ended, or did not answer in time; the message has the end of its log."""


class Pinned:
    """A command on one core, with its output in `log`. With `priority` above all else on the machine (root only)."""

    def __init__(
        self,
        command: Sequence[str],
        core: int,
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        priority: bool = False,
    ) -> None:
        def settle() -> None:
            os.sched_setaffinity(0, {core})
            if priority:
                os.setpriority(os.PRIO_PROCESS, 0, -20)
                _raise_group("self")

        self.log = log
        self._priority = priority
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **(env or {})}, cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=settle,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def wait_for(self, url: str, seconds: float) -> None:
        """Until `url` answers 200. Raises StartFailed."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if not self.running:
                raise StartFailed(f"it ended: {self.tail()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    if self._priority:  # a child in a session of its own does not inherit the group's
                        for pid, _ in self._family():
                            _raise_group(pid)
                    return
            time.sleep(0.2)
        raise StartFailed(f"{url} did not answer within {seconds:g} s: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-1500:].strip() or "it wrote nothing"

    def stop(self) -> None:
        """SIGTERM to the command, which is to end its own; then SIGKILL to whatever it has left."""
        family = [pid for pid, _ in self._family()]
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def cpu_seconds(self) -> float:
        """User and system time of every living process of the family; whole ticks, usually 10 ms."""
        return sum((int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND for _, fields in self._family())

    def memory_bytes(self) -> int:
        """Proportional set size: what is shared counts in parts."""
        total = 0
        for pid, _ in self._family():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total

    def _family(self) -> list[tuple[int, list[str]]]:
        """The process and all that descends from it: process ids, with /proc/PID/stat from its third field on."""
        fields_of: dict[int, list[str]] = {}
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    fields_of[int(entry.name)] = fields
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
        family = [self._process.pid]
        for pid in family:
            family += children.get(pid, [])
        return [(pid, fields_of[pid]) for pid in family if pid in fields_of]


def _raise_group(pid: int | str) -> None:
    """Where the kernel groups processes by session, only the group's own number counts between sessions."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/{pid}/autogroup").write_text("-20")


def listening(port: int) -> bool:
    """Whether anybody answers on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def core_busy_seconds(core: int) -> float:
    """How long a core has not been idle since the machine started, whoever used it; stolen time included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _waiting, *rest = (int(count) for count in ticks[:8])
            return (user + nice + system + sum(rest)) / TICKS_PER_SECOND
    raise ValueError(f"this machine has no core {core}")
