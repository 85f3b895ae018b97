"""Which process is which: a pid alone is given away again, a pid with its start is not.

Owns what the kernel says of a process's start. Must not know what the process is for.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

_DEAD = frozenset("ZXx")  # a zombie is dead: where nobody reaps orphans it stays in the table for good


@cache
def boot() -> str:
    """Which run of the machine this is; empty where the kernel has no name for it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """When `pid` was started, as text to compare with; None if no such process lives.

    Linux: field 22 of /proc/PID/stat (proc_pid_stat(5)), clock ticks since boot, after the boot's id. The
    second field is the command's name in parentheses and may itself hold blanks and parentheses: what counts follows
    the last one.
    """
    if not sys.platform.startswith("linux"):
        return _by_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _DEAD else f"{boot()}:{fields[19]}"


def _by_ps(pid: int) -> str | None:
    asked = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = asked.stdout.strip().partition(" ")
    return start.strip() if start and state[0] not in _DEAD else None


def is_of_this_run(start: str) -> bool:
    """Whether what began at `start` (from `started`) was given its pid by this run of the machine, or of the container.

    A container that is started again goes on with the machine's boot and gives its numbers away anew: what is older
    than its first process was another run's. A first process that cannot be seen (hidepid) is a machine's.
    """
    run, _, ticks = start.rpartition(":")
    if run != boot() or not ticks.isdecimal():
        return False
    first = started(1)
    return first is None or int(ticks) >= int(first.rpartition(":")[2])


def is_alive(pid: int, start: str) -> bool:
    """Whether the process that began at `start` (from `started`) under `pid` still lives."""
    return started(pid) == start
