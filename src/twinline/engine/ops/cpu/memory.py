"""Memory for packed weights, in huge pages where the system gives them, and a report of what it gave.

A weight is read from end to end at every step, so that with pages of 4 KiB each of them costs a look-up and an end of
what the processor reads ahead. Owns the mappings. Knows no layout.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HUGE = 2 * 2**20  # a huge page of x86-64, and of arm64 with pages of 4 KiB
ALIGNMENT = 64
REGION = 64 * 2**20  # address space taken at once, so that small weights share huge pages


@dataclass(frozen=True)
class Report:
    """Bytes given out that are still in use, and how many of those mapped lie in huge pages now."""

    used: int
    mapped: int
    huge: int

    def __str__(self) -> str:
        share = f"{self.huge / self.mapped:.0%}" if self.mapped else "none"
        return f"packed weights: {self.used / 2**20:.0f} MiB, {share} of their memory in huge pages"


class Regions:
    """Places for weights. A region is given back to the system when the last tensor on it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Tensor | None = None  # what is left of the newest region
        self._regions: list[tuple[int, int, weakref.ref[mmap.mmap]]] = []  # (address, bytes, its mapping)
        self._used: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def empty(self, size: int) -> Tensor:
        """`size` bytes, uint8, zero, on a cache line of their own."""
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        with self._lock:
            if self._open is None or len(self._open) < taken:
                self._open = self._map(max(taken, REGION))
            place, self._open = self._open[:size], self._open[taken:]
            self._used[place.data_ptr()] = place
            return place

    def _map(self, size: int) -> Tensor:
        mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them: the report says so
                mapping.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(mapping, dtype=torch.uint8)
        begin = -whole.data_ptr() % HUGE
        self._regions.append((whole.data_ptr(), size + HUGE, weakref.ref(mapping)))
        return whole[begin : begin + size]

    def report(self) -> Report:
        with self._lock:
            self._regions = [region for region in self._regions if region[2]() is not None]
            used = sum(place.nbytes for place in self._used.values())
            mapped, huge = _measure([(address, address + size) for address, size, _ in self._regions])
        return Report(used, mapped, huge)


def _measure(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    """Bytes of the process's memory within `ranges` that are there, and that are in huge pages (proc(5), smaps)."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return 0, 0
    ours, found = False, {"Rss:": 0, "AnonHugePages:": 0}
    for line in smaps.read_text().splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            ours = any(begin < last and first < end for first, last in ranges)
        elif ours and name in found:
            found[name] += int(rest[0]) * 1024
    return found["Rss:"], found["AnonHugePages:"]


_regions = Regions()
empty, report = _regions.empty, _regions.report
