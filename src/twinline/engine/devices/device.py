"""The engine's handle on a PyTorch device type: what the rest of the engine may ask of a device, and nothing more.

Everything above this room is the same code for every chip. A new chip is one small file here and one line in
`DEVICES`; one that has none starts with the generic accelerator.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import torch

from twinline.facts import chips
from twinline.facts.vendors import Pytorch


class Device(Protocol):
    """Sixteen members. `providers` is the order in which op providers are tried; `cache_share` is the part of the
    free memory that a cache may take when nobody says; `step_tokens` are the tokens that a step computes when nobody
    says, enough to hide what it costs to call its kernels; a step that takes longer than `step_seconds` counts as hung;
    `simulated`: no silicon, and always said so; `free_memory` is in bytes, None where the device cannot tell; `zeros`
    may give memory that is only taken when it is written; the thread that computes calls `prepare_thread` first;
    `capture_rows` are the counts of rows for which steps of decodes are recorded, empty where the device records none;
    `capture` runs a step and returns what replays it on the same tensors, and the tensor that then holds its result
    until the next replay, or says why it cannot (`NotCaptured`).
    """

    name: str
    torch_device: torch.device
    providers: tuple[str, ...]
    page_size: int
    cache_share: float
    step_tokens: int
    capture_rows: tuple[int, ...]
    step_seconds: float
    simulated: bool

    def supports(self, dtype: torch.dtype) -> bool: ...
    def free_memory(self) -> int | None: ...
    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor: ...
    def synchronize(self) -> None: ...
    def set_threads(self, count: int) -> None: ...
    def prepare_thread(self) -> None: ...
    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]: ...


class NotCaptured(Exception):
    """A step cannot be recorded; the message says why."""


DEVICES: dict[str, str] = {
    "cpu": "twinline.engine.devices.cpu:Cpu",
    "cuda": "twinline.engine.devices.cuda:Cuda",
    "simchip": "twinline.engine.devices.simulated.device:Simulated",
}
GENERIC = "twinline.engine.devices.accelerator:Accelerator"


def open_device(name: str = "auto") -> Device:
    """The device called `name`: `cpu`, or a PyTorch device type, with an index if wanted, or a simulated chip.

    `auto` takes the accelerator that PyTorch reports, else the CPU; never a simulated one. A vendor's package that
    makes a type known or usable is imported where PyTorch does not load it by itself. Raises ValueError if it is not
    there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = found.type if found is not None and not hasattr(_class(found.type), "named") else "cpu"
    kind = name.partition(":")[0]
    if hasattr(_class(kind), "named"):  # it has names of its own, and PyTorch knows it only once it is opened
        return _class(kind).named(name)
    _import_package(kind)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known to PyTorch: {str(error).splitlines()[0]}") from None
    if device.type != "cpu":
        module = getattr(torch, kind, None)
        if module is None or not module.is_available():
            raise ValueError(f"device {name!r} is not available on this machine")
        if device.index is not None and device.index >= module.device_count():
            raise ValueError(f"device {name!r} is not there: this machine has {module.device_count()} of them")
    return _class(kind)(device)


def _import_package(kind: str) -> None:
    """Raises ValueError if a vendor's package would make this device type known and cannot be imported.

    A type that PyTorch knows may be another vendor's too, through a package of theirs (`cuda` is): where nothing is
    there by itself, those that are installed are imported.
    """
    module = getattr(torch, kind, None)
    if module is not None and getattr(module, "is_available", bool)():
        return
    for vendor in chips.load().vendors.values():
        needed = vendor.pytorch
        if needed.device != kind or needed.import_name == "torch" or (module is not None and not _installed(needed)):
            continue
        try:
            importlib.import_module(needed.import_name)
        except Exception as error:  # libraries and drivers that are missing say so in many ways
            why = str(error).strip() or type(error).__name__
            raise ValueError(
                f"a device {kind!r} is {vendor.name}'s and needs {needed.package}; "
                f"import {needed.import_name}: {why.splitlines()[0]}"
            ) from None


def _installed(needed: Pytorch) -> bool:
    try:
        return importlib.util.find_spec(needed.import_name) is not None
    except (ImportError, ValueError):  # a package around it is not there, or was put there by hand
        return False


def _class(kind: str) -> Any:
    module, _, name = DEVICES.get(kind, GENERIC).partition(":")
    return getattr(importlib.import_module(module), name)


def silence(device: Device) -> Exception | None:
    """What comes instead of an answer from a device that is asked for an addition; None where it answers. That it lacks
    memory, or the addition, is an answer."""
    try:
        torch.ones(1, device=device.torch_device).add_(1)
        device.synchronize()
    except (NotImplementedError, torch.OutOfMemoryError):
        return None
    except Exception as error:
        return error
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, as checkpoints, options and reports say it."""
    return str(dtype).removeprefix("torch.")
