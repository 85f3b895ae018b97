"""Simulated chips for tests: opened for one, healthy again afterwards; and the engine's ops on one beside the CPU."""

from __future__ import annotations

import dataclasses
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tests.engine.op_cases import CASES, Case
from torch import Tensor

from twinline.engine.devices.device import Device, open_device
from twinline.engine.devices.simulated.chip import CHIPS
from twinline.engine.ops import registry

PROVIDERS = ("batched", "reference")
DTYPES = (torch.float32, torch.bfloat16)


@contextmanager
def opened(name: str = "simchip") -> Iterator[Any]:
    """The device called `name`; all chips are as new before and after, and hold no other test's garbage."""
    heal()
    try:
        yield open_device(name)
    finally:
        heal()


def heal() -> None:
    if any(chip.memory.used for chip in CHIPS):
        gc.collect()
    for chip in CHIPS:
        chip.released.set()
        chip.reset()


@cache
def cases(op: str, dtype: torch.dtype) -> list[Case]:
    """Some of an op's cases: the first ones, and the last, which are the large ones."""
    found = list(CASES[op](dtype))
    return found if len(found) < 9 else [*found[:6], *found[-2:]]


def moved(one: Any, device: torch.device) -> Any:
    """Every tensor in an op's arguments, copied to the device."""
    if isinstance(one, Tensor):
        return one.to(device) if device.type != "cpu" else one.clone()
    if isinstance(one, tuple):
        return tuple(moved(each, device) for each in one)
    if dataclasses.is_dataclass(one) and hasattr(one, "pages_P" if hasattr(one, "pages_P") else "pages_DP"):
        fields = {f.name: moved(getattr(one, f.name), device) for f in dataclasses.fields(one)}
        return dataclasses.replace(one, **fields)  # type: ignore[type-var]
    return one


def ran(op: str, provider: str, args: tuple[Any, ...], device: torch.device) -> list[Tensor]:
    """What an op gives on a device, on the host."""
    importlib.import_module(registry.PROVIDERS[provider])
    function, args = registry._registered[op, provider].function, moved(args, device)
    if op == "linear":
        out = function(args[0], function.pack(args[1]), *args[2:])
    elif op == "experts":
        out = function(args[0], function.pack(*args[1]), *args[2:])
    else:
        out = function(*args)
    out = args[0] if op == "kv_write" else out
    return [one.cpu() for one in (out if isinstance(out, tuple) else (out,))]


@torch.inference_mode()
def wrong(
    device: Device, ops: tuple[str, ...] = tuple(CASES), providers: tuple[str, ...] = PROVIDERS
) -> dict[str, str]:
    """Ops that give on the device what the CPU does not give, to the bit, or that raise; with what was seen last."""
    found: dict[str, str] = {}
    for op in ops:
        for provider in providers:
            for dtype in DTYPES:
                for name, args, _ in cases(op, dtype):
                    want = ran(op, provider, args, torch.device("cpu"))
                    try:
                        got = ran(op, provider, args, device.torch_device)
                    except (RuntimeError, ValueError, IndexError) as error:
                        found[op] = f"{provider} {dtype} {name}: {error}"
                        continue
                    if not all(map(torch.equal, want, got)):
                        found[op] = f"{provider} {dtype} {name}"
    return found
