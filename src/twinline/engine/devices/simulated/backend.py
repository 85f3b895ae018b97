"""How PyTorch comes to know `simchip`: its name, its module `torch.simchip`, its memory, its random numbers.

Owns the registration, which a process can have once: importing this file does it. Built on PyTorch's own (experimental)
helper for backends in Python. Knows no faults.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import backend_registration

from twinline.engine.devices.simulated.chip import CHIPS, COUNT
from twinline.engine.devices.simulated.dispatch import current, run, set_current
from twinline.engine.devices.simulated.tensor import KIND, SimTensor


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class Instant:
    """A stream and an event: what is asked of a simulated chip has happened when the call returns."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> Instant:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def record_event(self, event: Any = None) -> Instant:
        return Instant()

    def wait_stream(self, stream: Any) -> None:
        pass

    record = wait = wait_event = wait_stream


def _index(device: Any = None) -> int:
    if device is None:
        return current()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current() if index is None else index


class Module(backend_registration._DummyBackendModule):
    """`torch.simchip`: the functions that PyTorch and programs expect of a device type's module. Sizes in bytes."""

    Stream = Event = Instant

    def device_count(self) -> int:
        return COUNT

    def current_device(self) -> int:
        return current()

    def set_device(self, device: Any) -> None:
        index = _index(device)
        if not 0 <= index < COUNT:
            raise RuntimeError(f"{KIND}:{index} is not there: there are {COUNT} (simulated)")
        set_current(index)

    def get_device_name(self, device: Any = None) -> str:
        return f"{KIND}:{_index(device)} (simulated)"

    def synchronize(self, device: Any = None) -> None:
        """Raises ChipLost for a chip that is lost, and blocks on one that hangs."""
        chip = CHIPS[_index(device)]
        if chip.alert is not None and chip.ops >= chip.alert:
            chip.suffer("synchronize")

    def current_stream(self, device: Any = None) -> Instant:
        return Instant()

    default_stream = current_stream

    def stream(self, stream: Any) -> Instant:
        return Instant()

    def set_stream(self, stream: Any) -> None:
        pass

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """(free, total), as the driver claims."""
        self.synchronize(device)
        memory = CHIPS[_index(device)].memory
        return memory.report(memory), memory.total

    def memory_allocated(self, device: Any = None) -> int:
        return CHIPS[_index(device)].memory.used

    def max_memory_allocated(self, device: Any = None) -> int:
        return CHIPS[_index(device)].memory.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        memory = CHIPS[_index(device)].memory
        memory.peak = memory.used

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [d for d in (torch.bfloat16, torch.float16) if d not in CHIPS[current()].refused]

    def manual_seed(self, seed: int) -> None:
        CHIPS[current()].generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        for chip in CHIPS:
            chip.generator.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return CHIPS[_index(device)].generator.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        CHIPS[_index(device)].generator.set_state(state)


# Ops that make a tensor from nothing on a device. Those composed of these need no entry.
_FACTORIES = (
    "empty.memory_format", "empty_strided", "arange.start_step", "arange.start", "arange", "linspace", "eye", "eye.m",
    "randperm", "randperm.generator", "tril_indices", "triu_indices",
)  # fmt: skip
# What autocast runs in the lower precision.
_LOWER = ("linear", "matmul", "mm", "addmm", "bmm", "scaled_dot_product_attention")


def _overload(name: str) -> Any:
    packet, _, variant = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), variant or "default")


def _factory(name: str) -> Any:
    func = _overload(name)

    def make(*args: Any, **kwargs: Any) -> Any:
        if name.startswith("empty"):
            _ask(args[0], kwargs)
        return run(func, args, kwargs)

    return make


def _ask(shape: Any, kwargs: dict[str, Any]) -> None:
    """Before the host takes memory that the chip has not."""
    size = (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
    for extent in shape:
        size *= extent
    chip = CHIPS[_index(kwargs.get("device"))]
    chip.memory.ask(chip.index, size)


def _copy_from(source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return run(torch.ops.aten.copy_.default, (to, source), {})


def _autocast(name: str) -> Any:
    func = _overload(name)
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]

    def lower(one: Any) -> Any:
        if isinstance(one, SimTensor) and one.dtype == torch.float32:
            return one.to(torch.get_autocast_dtype(KIND))
        return one

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(without):
            return func(*map(lower, args), **{key: lower(one) for key, one in kwargs.items()})

    return cast


MODULE = Module()


def _register() -> list[torch.library.Library]:
    backend_registration._setup_privateuseone_for_python_backend(KIND, backend_module=MODULE, device_guard=_Guard())
    kernels = torch.library.Library("aten", "IMPL")
    for name in _FACTORIES:
        kernels.impl(name, _factory(name), "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    through = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    through.fallback(torch.library.fallthrough_kernel)
    for name in _LOWER:
        kernels.impl(name, _autocast(name), "AutocastPrivateUse1")
    return [kernels, through]


LIBRARIES = _register()  # they must live as long as the process: their end takes the kernels away
