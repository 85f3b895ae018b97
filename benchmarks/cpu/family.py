"""Processes as /proc shows them: families, their peak memory and priority, what the machine has left.

Standard library only: engines read it in their own environments.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")


def family(pid: int, proc: Path = PROC) -> list[int]:
    """A process and all that it started, in whatever session."""
    parents: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # the name, in parentheses, may hold anything
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def start_tick(pid: int, proc: Path = PROC) -> int:
    """When a process started, in the kernel's ticks; 0 where there is none."""
    try:
        return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def peak_bytes(pid: int, proc: Path = PROC) -> int:
    """The largest resident size that each process of the family has had, added up: pages shared count for each."""
    total = 0
    for one in family(pid, proc):
        with contextlib.suppress(OSError):
            total += field(proc / str(one) / "status", "VmHWM")
    return total


def available_bytes(proc: Path = PROC) -> int:
    """What programs could still take without swapping."""
    return field(proc / "meminfo", "MemAvailable")


def field(file: Path, name: str) -> int:
    """A field of /proc in kB, in bytes; 0 where it is missing."""
    for line in file.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def raise_priority(pid: int, proc: Path = PROC) -> None:
    """A family above everything else on the machine, also where each session is a scheduling group. Needs root."""
    for one in family(pid):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, one, -20)
        with contextlib.suppress(OSError):
            (proc / str(one) / "autogroup").write_text("-20")
