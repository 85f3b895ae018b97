"""One process of level 4: joins the group, exchanges known numbers, compares with float64, writes a finding per check.

Started by `collectives.py` with one JSON argument. Every rank knows what every rank sends, from the seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from twinline.engine.devices.device import dtype_name, open_device
from twinline.verify.ladder.attempt import broken
from twinline.verify.ladder.finding import Finding

SIZES = (1, 1000, 2**16 + 3)
AGAIN = range(1001, 1033)  # sizes, each with its own numbers: what is wrong once in ten is missed once in thirty
BACKENDLESS = "gloo"  # what carries a device type that names no backend of its own: PyTorch unwraps its tensors


class Rank:
    def __init__(self, words: dict[str, Any]):
        self.words = words
        self.rank, self.ranks = int(words["rank"]), int(words["ranks"])
        self.device = open_device(words["device"])
        self.dtype = torch.float32
        self.dtypes = [d for d in (torch.float32, torch.bfloat16) if self.device.supports(d)]
        kind = self.device.torch_device.type
        try:
            backend = dist.get_default_backend_for_device(kind)
        except ValueError:
            backend = f"cpu:{BACKENDLESS},{kind}:{BACKENDLESS}"
        dist.init_process_group(
            backend, init_method=f"file://{words['meeting']}", rank=self.rank, world_size=self.ranks,
            timeout=timedelta(seconds=30),
        )  # fmt: skip
        Path(words["output"]).with_suffix(".met").touch()

    def numbers(self, rank: int, size: int) -> Tensor:
        """What a rank contributes, made by every rank alike."""
        seed = np.random.SeedSequence([self.words["seed"], rank, size])
        return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(size)).to(self.dtype)

    def here(self, x: Tensor) -> Tensor:
        return x.to(self.device.torch_device)

    def all_reduce(self, size: int) -> tuple[Tensor, Tensor, int]:
        x = self.here(self.numbers(self.rank, size))
        dist.all_reduce(x)
        return x.cpu(), self.sum(size), self.ranks

    def sum(self, size: int) -> Tensor:
        return torch.stack([self.numbers(r, size).double() for r in range(self.ranks)]).sum(0)

    def all_gather(self, size: int) -> tuple[Tensor, Tensor, int]:
        out = self.here(torch.zeros(size * self.ranks, dtype=self.dtype))
        dist.all_gather_into_tensor(out, self.here(self.numbers(self.rank, size)))
        return out.cpu(), torch.cat([self.numbers(r, size) for r in range(self.ranks)]).double(), 0

    def reduce_scatter(self, size: int) -> tuple[Tensor, Tensor, int]:
        whole = size * self.ranks
        out = self.here(torch.zeros(size, dtype=self.dtype))
        dist.reduce_scatter_tensor(out, self.here(self.numbers(self.rank, whole)))
        return out.cpu(), self.sum(whole)[self.rank * size : (self.rank + 1) * size], self.ranks

    def all_to_all(self, size: int) -> tuple[Tensor, Tensor, int]:
        """Uneven: rank r sends r + 1 times as much to the last as to the first."""

        def splits(rank: int) -> list[int]:
            return [size + rank * to for to in range(self.ranks)]

        mine = splits(self.rank)
        incoming = [splits(r)[self.rank] for r in range(self.ranks)]
        out = self.here(torch.zeros(sum(incoming), dtype=self.dtype))
        dist.all_to_all_single(out, self.here(self.numbers(self.rank, sum(mine))), incoming, mine)
        parts = []
        for r in range(self.ranks):
            at = sum(splits(r)[: self.rank])
            parts.append(self.numbers(r, sum(splits(r)))[at : at + incoming[r]])
        return out.cpu(), torch.cat(parts).double(), 0

    def broadcast(self, size: int) -> tuple[Tensor, Tensor, int]:
        last = self.ranks - 1
        x = self.here(self.numbers(self.rank, size))
        dist.broadcast(x, last)
        return x.cpu(), self.numbers(last, size).double(), 0

    def send(self, size: int) -> tuple[Tensor, Tensor, int]:
        """From each rank to the next, in a ring of two steps so that nobody waits for itself."""
        x, out = self.here(self.numbers(self.rank, size)), self.here(torch.zeros(size, dtype=self.dtype))
        if self.rank % 2 == 0:
            dist.send(x, (self.rank + 1) % self.ranks)
            dist.recv(out, (self.rank - 1) % self.ranks)
        else:
            dist.recv(out, (self.rank - 1) % self.ranks)
            dist.send(x, (self.rank + 1) % self.ranks)
        return out.cpu(), self.numbers((self.rank - 1) % self.ranks, size).double(), 0


def check(name: str, run: Callable[[int], tuple[Tensor, Tensor, int]]) -> Finding:
    """Moves are exact; a sum of n numbers errs by at most n roundings of its largest partial sum."""
    worst, where = 0.0, ""
    for size in (*SIZES, *AGAIN):
        out, right, summed = run(size)
        off = (out.double() - right).abs()
        unit = max(torch.finfo(out.dtype).eps / 2, 2.0**-24)
        allowed = summed * unit * (right.abs() + 1.0) if summed else torch.zeros(())
        bad = ~(off <= allowed)
        if bad.any():
            at = int(bad.int().argmax())
            worst = max(worst, float(off.max()))
            where = where or (f"{int(bad.sum())} of {len(right)} values in {dtype_name(out.dtype)} are wrong, "
                              f"the first by {float(off[at]):.1e}")  # fmt: skip
    rule = "sums within a rounding per term of float64, moves bit for bit"
    return Finding(check=f"collectives.{name}", verdict="fail" if where else "pass", rule=rule,
                   text=where or f"right for {', '.join(f'{s:,}' for s in SIZES)} values, and {len(AGAIN)} times more",
                   dtype=dtype_name(out.dtype), figures={"error": worst})  # fmt: skip


def every(rank: Rank, name: str) -> Finding:
    """A check in each dtype that the device has: the first that fails, or that in float32."""
    found = []
    for dtype in rank.dtypes:
        rank.dtype = dtype
        found.append(check(name, getattr(rank, name)))
    return next((one for one in found if one.verdict == "fail"), found[0])


def main() -> int:
    words = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with Path(words["output"]).open("ab", buffering=0) as out:
        try:
            rank = Rank(words)
        except Exception as error:
            for name in words["checks"]:
                out.write(msgspec.json.encode(broken(f"collectives.{name}", error, rule="the group forms")) + b"\n")
            return 1
        for name in words["checks"]:
            try:
                finding = every(rank, name)
            except Exception as error:
                finding = broken(f"collectives.{name}", error)
            out.write(msgspec.json.encode(finding) + b"\n")
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
