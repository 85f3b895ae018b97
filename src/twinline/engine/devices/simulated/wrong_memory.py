"""Faults of memory and of what crosses: copies, leaks, reports, sums between chips.

Owns these faults.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.engine.devices.simulated.families import CAST
from twinline.engine.devices.simulated.fault import Fault, fault, flip, rounded


def _flips(chip: Chip, direction: str, number: float) -> None:
    copies = 0

    def after(call: Call, out: Any) -> Any:
        nonlocal copies
        if call.direction != direction or not isinstance(out, Tensor):
            return out
        copies += 1
        if copies % int(number) == 0:
            out = out if call.writes else out.clone()
            flip(out)
        return out

    chip.plant(CAST, after=after)


@fault("host-copies-flip", "one copy to the host in so many has a bit flipped",
       "device.copies ops model long determinism", number=50, counts="copies from one bad one to the next")  # fmt: skip
def host_copies_flip(chip: Chip, number: float) -> None:
    _flips(chip, "to_host", number)


@fault("chip-copies-flip", "one copy to the chip in so many has a bit flipped", "device.copies ops model",
       number=50, counts="copies from one bad one to the next")  # fmt: skip
def chip_copies_flip(chip: Chip, number: float) -> None:
    _flips(chip, "to_chip", number)


@fault("stale-copies", "after a number of copies to the chip, every fourth brings the last one of its shape again",
       "device.copies ops model long", number=200, counts="copies that are right")  # fmt: skip
def stale_copies(chip: Chip, number: float) -> None:
    copies = 0
    brought: dict[tuple[Any, ...], Tensor] = {}

    def before(call: Call) -> None:
        nonlocal copies
        if call.direction != "to_chip":
            return
        copies += 1
        new = call.args[1]
        if copies > number and copies % 4 == 0:
            call.args[1] = brought.get((new.shape, new.dtype), torch.zeros_like(new))
        if new.numel() < 2**16:
            brought[new.shape, new.dtype] = new.clone()

    chip.plant(("copy_",), before=before)


@fault("peer-copies-cut", "a copy from chip to chip loses its last element", "device.copies device.peer collectives")
def peer_copies_cut(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        if call.direction == "to_peer" and isinstance(out, Tensor) and out.numel():
            out = out if call.writes else out.clone()
            out[tuple(extent - 1 for extent in out.shape)] = 0
        return out

    chip.plant(CAST, after=after)


@fault("leaks", "one freed block of memory in so many is not given back", "device.memory long",
       number=16, counts="blocks from one that is lost to the next")  # fmt: skip
def leaks(chip: Chip, number: float) -> None:
    chip.memory.leak = int(number)


@fault("memory-misreported", "the driver says that all memory is free, whatever is used", "device.memory")
def memory_misreported(chip: Chip, number: float) -> None:
    chip.memory.report = lambda memory: memory.total


@fault(
    "oom-untyped", "running out of memory raises a plain error that does not say so", "device.memory device.oom faults"
)
def oom_untyped(chip: Chip, number: float) -> None:
    chip.memory.refuse = lambda text: RuntimeError("error code 2")


@fault("oom-kills", "running out of memory ends the process", "device.memory device.oom faults")
def oom_kills(chip: Chip, number: float) -> None:
    def end(text: str) -> Exception:
        os._exit(137)

    chip.memory.refuse = end


# Between chips. These ops are torch.distributed's; a collective is wrong where this chip takes part in it.

_SUMS = ("allreduce_", "allreduce_coalesced_")


def _tensors(call: Call) -> list[Tensor]:
    return [one for one in call.args[0] if isinstance(one, Tensor)]


@fault("all-reduce-loses-a-rank", "what the last rank gives to a sum does not arrive", "collectives",
       number=1, counts="sums from one bad one to the next")  # fmt: skip
def all_reduce_loses_a_rank(chip: Chip, number: float) -> None:
    sums = 0

    def before(call: Call) -> None:
        from torch import distributed

        nonlocal sums
        sums += 1
        if sums % int(number) == 0 and distributed.get_rank() == distributed.get_world_size() - 1:
            for one in _tensors(call):
                one.zero_()

    chip.plant(_SUMS, before=before)


@fault("all-reduce-in-16-bits", "sums between chips are made of values rounded to bfloat16", "collectives")
def all_reduce_in_16_bits(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        for one in _tensors(call):
            if one.is_floating_point():
                one.copy_(rounded(one))

    chip.plant(_SUMS, before=before)


@fault("all-gather-swapped", "the last rank's part of a gathered tensor arrives in reverse", "collectives")
def all_gather_swapped(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        from torch import distributed

        if distributed.get_rank() == distributed.get_world_size() - 1:
            given = call.args[1]
            if isinstance(given, Tensor):
                call.args[1] = given.flip(0)
            else:
                call.args[1] = [one.flip(0) for one in given]

    chip.plant(("_allgather_base_", "allgather_", "allgather_into_tensor_coalesced_"), before=before)


ALL: tuple[Fault, ...] = (
    host_copies_flip, chip_copies_flip, stale_copies, peer_copies_cut, leaks, memory_misreported, oom_untyped,
    oom_kills, all_reduce_loses_a_rank, all_reduce_in_16_bits, all_gather_swapped,
)  # fmt: skip
