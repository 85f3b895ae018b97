"""One simulated chip: its memory, its count of ops, what it refuses, what was planted in it, whether it still lives.

Owns that state. Knows no tensor classes, no PyTorch registration and no fault by name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

COUNT = 4
GIB = 2**30

Before = Callable[["Call"], None]
After = Callable[["Call", Any], Any]


class ChipLost(torch.AcceleratorError):
    """The chip is gone: every later op on it raises this again, until the process ends."""


@dataclass
class Call:
    """One op on the chip. `args` and `kwargs` hold the host tensors that stand for the chip's; a fault may replace them
    before the op runs. `direction` is `to_host`, `to_chip`, `to_peer` or empty; `writes`: it changes an argument.
    `started` is of `time.perf_counter`; `memo` is what a `before` keeps for its `after`."""

    chip: Chip
    name: str
    func: Any
    args: list[Any]
    kwargs: dict[str, Any]
    direction: str = ""
    writes: bool = False
    started: float = field(default_factory=time.perf_counter)
    memo: Any = None


class Allocation:
    """Bytes taken from a chip; given back when the storage that carries this object is freed."""

    __slots__ = ("memory", "size")

    def __init__(self, memory: Memory, size: int):
        self.memory, self.size = memory, size

    def __del__(self) -> None:
        self.memory.give(self.size)


class Memory:
    """A limit and what is used of it, in bytes. What PyTorch's CPU kernels take besides is not counted.

    `leak`: of this many allocations one is not given back before `mend`. `report` says what the driver claims is free.
    """

    def __init__(self, total: int):
        self.total = total
        self.used = self.peak = self.returns = 0
        self.leak = self._leaked = 0
        self.report: Callable[[Memory], int] = lambda memory: memory.total - memory.used
        self.refuse: Callable[[str], Exception] = torch.OutOfMemoryError
        self._lock = threading.Lock()

    def ask(self, index: int, size: int) -> None:
        """Raises OutOfMemoryError (or what was planted in its place) if `size` bytes are not free."""
        if self.used + size > self.total:
            free = self.total - self.used
            raise self.refuse(
                f"simchip:{index} (simulated) is out of memory: {size} bytes wanted, {free} of {self.total} free"
            )

    def take(self, index: int, size: int) -> Allocation:
        self.ask(index, size)
        with self._lock:
            self.used += size
            self.peak = max(self.peak, self.used)
        return Allocation(self, size)

    def give(self, size: int) -> None:
        with self._lock:
            self.returns += size > 0
            if self.leak and size and self.returns % self.leak == 0:
                self._leaked += size
            else:
                self.used -= size

    def mend(self) -> None:
        """It leaks no more, and what had leaked is free again."""
        with self._lock:
            self.used -= self._leaked
            self.leak = self._leaked = 0


class Chip:
    """`plays` is the name under which it was opened. `ops` counts what ran. `alert` is the number of ops from which on
    `suffer` is asked before each one."""

    def __init__(self, index: int):
        self.index = index
        self.memory = Memory(GIB)
        self.generator = torch.Generator("cpu")
        self.released = threading.Event()
        self.reset()

    def reset(self, memory: int = GIB) -> None:
        """A healthy chip again, with `memory` bytes; what is allocated stays allocated, what leaked does not."""
        self.plays = ""
        self.ops = 0
        self.alert: int | None = None
        self.lost: str | None = None
        self.hangs = False
        self.dies_at: int | None = None
        self.hangs_at: int | None = None
        self.missing: frozenset[str] = frozenset()
        self.only: frozenset[str] | None = None
        self.refused: frozenset[torch.dtype] = frozenset()
        self.before: dict[str, tuple[Before, ...]] = {}
        self.after: dict[str, tuple[After, ...]] = {}
        self.every: tuple[After, ...] = ()
        self.planted = False
        """Whether anything above that an op must ask about is there."""
        self.memory.total = memory
        self.memory.mend()
        self.memory.report = lambda memory: memory.total - memory.used
        self.memory.refuse = torch.OutOfMemoryError
        self.generator.manual_seed(0)
        self.released.clear()

    # What is planted

    def lacks(self, names: Iterable[str]) -> None:
        self.missing |= frozenset(names)
        self.planted = True

    def has_only(self, names: Iterable[str]) -> None:
        """Ops not among `names` are missing; views, which cost a chip nothing, are always there."""
        self.only = frozenset(names)
        self.planted = True

    def refuses(self, dtypes: Iterable[torch.dtype]) -> None:
        self.refused |= frozenset(dtypes)
        self.planted = True

    def plant(self, names: Iterable[str], *, before: Before | None = None, after: After | None = None) -> None:
        """Lets `before` change the arguments, `after` the result, of the aten ops `names`."""
        for name in names:
            if before is not None:
                self.before[name] = (*self.before.get(name, ()), before)
            if after is not None:
                self.after[name] = (*self.after.get(name, ()), after)
        self.planted = True

    def plant_everywhere(self, after: After) -> None:
        self.every = (*self.every, after)
        self.planted = True

    # Its life

    def die(self, reason: str) -> None:
        self.lost, self.alert = reason, 0
        self.released.set()

    def hang(self) -> None:
        self.released.clear()
        self.hangs, self.alert = True, 0

    def heal(self) -> None:
        self.lost, self.hangs = None, False
        self.released.set()
        self.plan()

    def plan(self) -> None:
        """Sets `alert` to the next op at which something is due."""
        due = [at for at in (self.dies_at, self.hangs_at) if at is not None]
        self.alert = 0 if self.lost or self.hangs else min(due, default=None)

    def suffer(self, name: str) -> None:
        """Raises ChipLost or blocks, where that is due."""
        if self.dies_at is not None and self.ops >= self.dies_at:
            self.dies_at = None
            self.die(f"it died after {self.ops} ops, as planted")
        if self.hangs_at is not None and self.ops >= self.hangs_at:
            self.hangs_at = None
            self.hang()
        if self.hangs and self.lost is None:
            self.released.wait()
        if self.lost is not None:
            raise ChipLost(f"simchip:{self.index} (simulated) is lost, at aten::{name}: {self.lost}")


CHIPS = tuple(Chip(index) for index in range(COUNT))
