"""Any PyTorch accelerator, through `torch.accelerator` and the device type's module alone.

Written against PyTorch's documented interface; what it has run on is said in the support table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from twinline.engine.devices.device import NotCaptured


class Accelerator:
    providers: tuple[str, ...] = ("reference",)
    page_size = 16
    cache_share = 0.85
    step_tokens = 2048
    capture_rows: tuple[int, ...] = ()
    step_seconds = 120.0  # kernels that are compiled when first called take tens
    simulated = False

    def __init__(self, device: torch.device):
        self.torch_device = device
        self.name = device.type
        self.module = torch.get_device_module(device)

    def supports(self, dtype: torch.dtype) -> bool:
        """Tried, not declared: a small product in that dtype. Roughly right is enough: how exact it is, adaptation
        judges, which could not if a dtype that is slightly off were called missing."""
        try:
            one = torch.ones(2, 2, dtype=dtype, device=self.torch_device)
            return bool(abs((one @ one).float().sum().item() - 8) < 0.5)
        except (RuntimeError, TypeError, AssertionError):
            return False

    def free_memory(self) -> int | None:
        if not hasattr(self.module, "mem_get_info"):
            return None
        free, _ = self.module.mem_get_info(self.torch_device)
        if hasattr(self.module, "memory_reserved") and hasattr(self.module, "memory_allocated"):  # taken, and idle
            free += self.module.memory_reserved(self.torch_device) - self.module.memory_allocated(self.torch_device)
        return int(free)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def synchronize(self) -> None:
        torch.accelerator.synchronize(self.torch_device)

    def prepare_thread(self) -> None:
        if self.torch_device.index is not None:
            torch.accelerator.set_device_index(self.torch_device.index)

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        raise NotCaptured(f"{self.name} records no steps")
