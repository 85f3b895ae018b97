"""One call of an op as a case: its arguments, on the host, on a device and in float64, and how they are drawn.

Owns arguments: random tensors, views, caches with scattered pages, plans. Which cases there are stands in `cases.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.verify.ladder.bench import Bench

PAGE = 16
MOST_CONTEXT = 700
LARGE_CACHE = 3e4  # what a place holds that no longer belongs to anybody


@dataclass(frozen=True)
class View:
    """`base` narrowed in its last dimension, or turned in its last two: made on the device, since a copy would make it
    contiguous."""

    base: Tensor
    start: int = 0
    length: int = 0
    turned: bool = False

    def of(self, base: Tensor) -> Tensor:
        return base.transpose(-1, -2) if self.turned else base.narrow(-1, self.start, self.length)


@dataclass(frozen=True)
class Case:
    """One call. `args` are tensors on the host, views of such, plans and numbers, in the op's order."""

    op: str
    name: str
    args: tuple[Any, ...]

    @property
    def shape(self) -> str:
        first = self.args[0]
        shape = first.of(first.base).shape if isinstance(first, View) else first.shape
        return f"{self.name}, {'x'.join(map(str, shape))}"


def placed(value: Any, device: torch.device) -> Any:
    """An argument on a device."""
    if isinstance(value, View):
        return value.of(value.base.to(device))
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(placed(one, device) for one in value)
    if isinstance(value, PrefillPlan):
        return replace(value, pages_P=value.pages_P.to(device))
    if isinstance(value, DecodePlan):
        blocked = None if value.blocked_DL is None else value.blocked_DL.to(device)
        return DecodePlan(value.pages_DP.to(device), value.lengths_D.to(device), blocked)
    return value


def wide(value: Any) -> Any:
    """An argument for the golden op: numpy, float64 where it was floating point."""
    if isinstance(value, View):
        return wide(value.of(value.base))
    if isinstance(value, Tensor):
        return (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, tuple):
        return tuple(wide(one) for one in value)
    return value


def call(function: Any, case: Case, device: torch.device) -> list[Tensor]:
    """The op's results, on the host. What it writes to is a copy; weights are packed by their owner."""
    args = [placed(one, device) for one in case.args]
    if case.op == "kv_write":
        args[0] = args[0].clone()
        function(*args)
        return [args[0].cpu()]
    if case.op == "linear":
        args[1] = function.pack(args[1])
    elif case.op == "experts":
        args[1] = function.pack(*args[1])
    out = function(*args)
    return [one.cpu() for one in (out if isinstance(out, tuple) else (out,))]


class Maker:
    """Random arguments for one op in one dtype."""

    def __init__(self, bench: Bench, op: str, dtype: torch.dtype):
        self.spec, self.op, self.dtype = bench.spec, op, dtype
        self.draw = bench.generator("case", op, str(dtype))

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(self.draw.standard_normal(shape) * scale).to(dtype or self.dtype)

    def indices(self, below: int, *shape: int) -> Tensor:
        return torch.from_numpy(self.draw.integers(0, below, shape))

    def shuffled(self, count: int) -> list[int]:
        return [int(i) for i in self.draw.permutation(count)]

    def choices(self, rows: int, count: int, chosen: int) -> Tensor:
        """Different experts for each row, `[rows, chosen]`."""
        return torch.tensor([self.shuffled(count)[:chosen] for _ in range(rows)])

    def case(self, name: str, *args: Any) -> Case:
        return Case(self.op, name, args)

    def pages(self, lengths: list[int]) -> list[list[int]]:
        """Shuffled pages for each sequence: no two share one, and page 0 is nobody's."""
        free = [1 + i for i in self.shuffled(sum(-(-n // PAGE) for n in lengths))]
        return [[free.pop() for _ in range(-(-n // PAGE))] for n in lengths]

    def cache(self, pages: list[list[int]], lengths: list[int], heads: int, size: int) -> Tensor:
        """`[heads, pages, page, size]`: random where a sequence is, large numbers elsewhere."""
        cache = torch.full((heads, sum(map(len, pages)) + 1, PAGE, size), LARGE_CACHE, dtype=self.dtype)
        for own, length in zip(pages, lengths, strict=True):
            at = torch.arange(length)
            where = torch.tensor(own)[at // PAGE] * PAGE + at % PAGE
            cache.flatten(1, 2)[:, where] = self.normal(heads, length, size)
        return cache

    def decode_plan(self, pages: list[list[int]], lengths: list[int]) -> DecodePlan:
        width = max(map(len, pages))
        lengths_D = torch.tensor(lengths)
        blocked = torch.arange(width * PAGE) >= lengths_D[:, None]
        table = torch.tensor([own + [0] * (width - len(own)) for own in pages])
        return DecodePlan(table, lengths_D, blocked if bool(blocked.any()) else None)

    @property
    def context(self) -> int:
        """The longest past that a case has."""
        return max(min(self.spec.context - 33, MOST_CONTEXT), 1)

    def pasts(self) -> list[tuple[int, int]]:
        """Places before a chunk, and its rows: whole pages, page tails, one row, long, a large chunk."""
        found = [(0, 16), (0, 33), (16, 7), (37, 19), (31, 1), (self.context, 33), (0, 256)]
        return [(past, rows) for past, rows in found if past + rows <= self.spec.context] or [(0, self.spec.context)]

    def lengths(self) -> list[list[int]]:
        """Contexts of decodes, their new tokens included: one, page tails, ragged, alike, many."""
        long = self.context
        return [[1], [17], [1, 16, 17, 40, long], [32, 32], [5] * 33, [20] * 64, [long, 3, long]]
