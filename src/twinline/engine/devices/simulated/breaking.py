"""Faults that are no wrong numbers: missing ops, refused dtypes, slowness, hangs, death.

Owns these faults.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from twinline.engine.devices.simulated.chip import Chip
from twinline.engine.devices.simulated.families import ADD_ROWS, ATTENTION, MATRIX, ROWS, TOPK
from twinline.engine.devices.simulated.fault import Fault, fault
from twinline.engine.devices.simulated.profiles import slow_down

ATTENDS = "mla_prefill attention_prefill device.aten"


def _lacks(names: frozenset[str]) -> Callable[[Chip, float], None]:
    return lambda chip, number: chip.lacks(names)


no_index_add = fault("no-index-add", "rows cannot be added to places", "experts device.aten")(_lacks(ADD_ROWS))
no_topk = fault("no-topk", "there is no topk", "route device.aten")(_lacks(TOPK))
no_fused_attention = fault("no-fused-attention", "there is no fused attention", ATTENDS)(_lacks(ATTENTION))


@fault("no-bfloat16", "bfloat16 is refused", "device.dtypes device.dtype")
def no_bfloat16(chip: Chip, number: float) -> None:
    chip.refuses({torch.bfloat16})


@fault("no-float16", "float16 is refused", "device.dtypes device.dtype")
def no_float16(chip: Chip, number: float) -> None:
    chip.refuses({torch.float16})


@fault("slow-products", "matrix products take many times as long", "speed linear experts mla_absorb",
       number=30, counts="times as long as on the host")  # fmt: skip
def slow_products(chip: Chip, number: float) -> None:
    slow_down(chip, MATRIX, number)


@fault("slow-gathers", "gathering rows takes many times as long", "speed embedding mla_decode mla_prefill",
       number=100, counts="times as long as on the host")  # fmt: skip
def slow_gathers(chip: Chip, number: float) -> None:
    slow_down(chip, ROWS, number)


@fault("hangs", "an op never returns", "ops model long device faults layers tasks speed determinism",
       number=20000, counts="ops before it")  # fmt: skip
def hangs(chip: Chip, number: float) -> None:
    chip.hangs_at = int(number)


@fault("dies", "the chip is lost: this op and all after it raise `ChipLost`",
       "ops model long device faults layers tasks speed determinism",
       number=20000, counts="ops before it")  # fmt: skip
def dies(chip: Chip, number: float) -> None:
    chip.dies_at = int(number)


ALL: tuple[Fault, ...] = (
    no_index_add, no_topk, no_fused_attention, no_bfloat16, no_float16, slow_products, slow_gathers, hangs, dies,
)  # fmt: skip
