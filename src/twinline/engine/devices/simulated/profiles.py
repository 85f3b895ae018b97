"""Which chips' software behaviour the simulated chip can play. Never their speed, never their arithmetic.

Owns the list. A profile says what the software of a chip refuses or lacks; sources stand with the chips in
`facts/data/chips`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from twinline.engine.devices.simulated import families
from twinline.engine.devices.simulated.chip import GIB, Call, Chip

FP8 = frozenset(
    {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu}
)
BF16 = frozenset({torch.bfloat16})


@dataclass(frozen=True)
class Profile:
    """`only`: the aten ops that there are, if that is fewer than all. `slow`: how many times as long as the host the
    matrix products of a dtype take. `memory` in bytes."""

    text: str
    refused: frozenset[torch.dtype] = frozenset()
    missing: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    slow: tuple[tuple[torch.dtype, float], ...] = ()
    memory: int = GIB

    def put_on(self, chip: Chip) -> None:
        chip.reset(self.memory)
        if self.refused:
            chip.refuses(self.refused)
        if self.missing:
            chip.lacks(self.missing)
        if self.only is not None:
            chip.has_only(self.only)
        for dtype, times in self.slow:
            slow_down(chip, families.MATRIX | families.ATTENTION, times, dtype)


def slow_down(chip: Chip, names: Iterable[str], times: float, dtype: torch.dtype | None = None) -> None:
    """Lets ops take `times` as long as the host needed; for inputs of one dtype only, if one is given."""

    def wait(call: Call, out: Any) -> Any:
        if dtype is None or any(isinstance(one, torch.Tensor) and one.dtype == dtype for one in call.args):
            time.sleep((times - 1) * (time.perf_counter() - call.started))
        return out

    chip.plant(names, after=wait)


PROFILES: dict[str, Profile] = {
    "clean": Profile("everything that PyTorch's CPU kernels do"),
    "no-bfloat16": Profile("refuses to compute in bfloat16", refused=BF16),
    "no-fp8": Profile("refuses every 8-bit floating-point dtype", refused=FP8),
    "like-a100": Profile("an A100's software side: bfloat16 and float16, no 8-bit floating point", refused=FP8),
    "like-310p": Profile(
        "an Ascend 310P's software side: float16 and no bfloat16, no 8-bit floating point", refused=BF16 | FP8
    ),
    "like-p800": Profile(
        "a Kunlun P800's software side: bfloat16 works at half of float16's speed, no 8-bit floating point",
        refused=FP8,
        slow=((torch.bfloat16, 2.0),),
    ),
    "missing-ops": Profile(
        "no argsort, no index_add, no fused attention: nothing implements a mixture of experts without them",
        missing=families.SORT | families.ADD_ROWS | families.ATTENTION,
    ),
    "young-plugin": Profile(
        "no fused attention, no index_copy, no index_select: what needs them falls back to the reference",
        missing=families.ATTENTION | frozenset({"index_copy_", "index_copy", "index_select"}),
    ),
    "first-ops": Profile(
        "a first bring-up: the ops that the reference provider and a greedy sampler come down to, and no others",
        only=families.LEAST,
    ),
    "small-memory": Profile("32 MiB of memory", memory=32 * 2**20),
}
