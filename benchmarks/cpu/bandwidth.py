"""The machine's read bandwidth, measured beside every figure by `read.c`."""

from __future__ import annotations

import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

MEBIBYTES, PASSES = 1024, 5
SOURCE = Path(__file__).with_name("read.c")


@dataclass(frozen=True)
class Probe:
    """The compiled program and how much it reads."""

    program: Path
    mebibytes: int = MEBIBYTES
    passes: int = PASSES

    @classmethod
    def built(cls, folder: Path, mebibytes: int = MEBIBYTES) -> Probe:
        """Compiled into `folder` unless the one there is newer than its source. Raises CalledProcessError."""
        program = folder / "read"
        if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
            folder.mkdir(parents=True, exist_ok=True)
            command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
            subprocess.run(command, check=True)
        return cls(program, mebibytes)

    def passes_of(self, threads: int) -> list[float]:
        """Bytes per second of each pass, all threads together."""
        command = [str(self.program), str(threads), str(self.mebibytes), str(self.passes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return [float(line) for line in done.stdout.split()]


def between(before: list[float], after: list[float]) -> float:
    """The median of all passes on both sides of a measurement."""
    return statistics.median([*before, *after])
