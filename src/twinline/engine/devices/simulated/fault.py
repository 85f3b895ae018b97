"""What a fault is, and the small tools with which faults are written.

Owns the shape of a fault. Which there are stands in `faults.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call, Chip


@dataclass(frozen=True)
class Fault:
    """`number` is the default of what may be given as `FAULT=NUMBER`, and `counts` says what it is; None: nothing may.

    `shows` are checks of the ladder (`device.memory`, or what they begin with) and ops of the engine (`linear`): a good
    ladder names at least one of them. `plant` puts it into a chip.
    """

    name: str
    text: str
    shows: tuple[str, ...]
    plant: Callable[[Chip, float], None]
    number: float | None = None
    counts: str = ""


def fault(
    name: str, text: str, shows: str, *, number: float | None = None, counts: str = ""
) -> Callable[[Callable[[Chip, float], None]], Fault]:
    """Makes a `Fault` of the function that plants it; `shows` are words."""

    def make(plant: Callable[[Chip, float], None]) -> Fault:
        return Fault(name, text, tuple(shows.split()), plant, number, counts)

    return make


def kept(call: Call, out: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`out` with every floating-point tensor in it changed; in its place, where the op writes to an argument."""
    if isinstance(out, Tensor):
        if not out.is_floating_point() or not out.numel():
            return out
        changed = change(out)
        return out.copy_(changed) if call.writes else changed.to(out.dtype)
    if isinstance(out, list | tuple):
        return type(out)([kept(call, one, change) for one in out])
    return out


def numbers(chip: Chip, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> None:
    """Plants a change of all that the ops `names` compute."""
    chip.plant(names, after=lambda call, out: kept(call, out, change))


def rounded(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """To a narrower dtype, to nearest, and back."""
    return x.to(dtype).to(x.dtype)


# The bits of a float32 that a narrower dtype drops (float16's as long as the number is in its normal range).
_KEPT_BITS = {torch.bfloat16: -(2**16), torch.float16: -(2**13)}


def truncated(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """float32 to the next number of `dtype` towards zero, as float32."""
    return (x.float().contiguous().view(torch.int32) & _KEPT_BITS[dtype]).view(torch.float32)


def flip(x: Tensor) -> None:
    """One bit of the element in the middle, in place: a high bit of the mantissa, or the lowest of an integer."""
    if not x.numel():
        return
    at = tuple(extent // 2 for extent in x.shape)
    if x.dtype == torch.bool:
        x[at] = ~x[at]
    elif not x.is_floating_point():
        x[at] ^= 1
    else:
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size())
        if whole is not None:
            bit = {2: 6, 4: 20, 8: 50}[x.element_size()]
            x[at] = (x[at].clone().view(whole) ^ (1 << bit)).view(x.dtype)
