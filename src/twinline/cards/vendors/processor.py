"""The processor as a card, so that a machine without accelerators sees something: what the system says of it.

Reads /proc on Linux; elsewhere what Python knows. No tool is run.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from twinline.cards.card import Card
from twinline.cards.fields import identity

VENDOR = "cpu"
PROC = Path("/proc")


def processor(root: Path = PROC) -> Card:
    """The node's processors and memory as one card. `cores` are those that this process may use."""
    name = _field(root / "cpuinfo", "model name") or platform.processor() or platform.machine() or None
    total, free = (_kib(root / "meminfo", key) for key in ("MemTotal", "MemAvailable"))
    if total is None:
        total = _from_system()
    return Card(
        vendor=VENDOR,
        tool="/proc" if (root / "cpuinfo").exists() else "python",
        name=name,
        chip=identity(VENDOR, name),
        card=0,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_total=total,
        memory_used=total - free if total is not None and free is not None and free <= total else None,
        health="ok",
        reason="this program runs on it",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _field(path: Path, key: str) -> str | None:
    found = re.search(rf"^{re.escape(key)}\s*:\s*(\S.*?)\s*$", _text(path), re.MULTILINE)
    return found[1] if found else None


def _kib(path: Path, key: str) -> int | None:
    """Bytes; /proc/meminfo says kB and means 1024 (proc(5))."""
    found = re.search(rf"^{key}:\s+([0-9]+) kB$", _text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _from_system() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
