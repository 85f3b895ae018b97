"""Plain CPUs."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import numpy as np
import torch

from twinline.engine.ops.cpu import library, memory
from twinline.engine.ops.cpu.arena import Arena

log = logging.getLogger(__name__)


class Cpu:
    name = "cpu"
    providers: tuple[str, ...] = ("cpu", "onednn", "batched", "reference")
    page_size = 16
    cache_share = 0.25  # other programs live here too
    step_tokens = 512
    capture_rows = tuple(range(1, 257))  # every count: a row that pads would cost as much as one that counts
    step_seconds = 300.0  # a chunk of prefill of a 70B model takes minutes
    simulated = False

    def __init__(self, device: torch.device):
        self.torch_device = device
        self.arena = Arena()
        allowed = _cpu_quota()
        if allowed and allowed < torch.get_num_threads():
            torch.set_num_threads(allowed)

    def supports(self, dtype: torch.dtype) -> bool:
        return dtype in (torch.float32, torch.bfloat16, torch.float16)

    def free_memory(self) -> int | None:
        """Bytes that this process could still take: what the machine has free, within the container's limit."""
        free = None
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        try:
            with open("/proc/meminfo") as lines:
                free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
            group = "/sys/fs/cgroup/memory."
            with open(group + "max") as limit, open(group + "current") as used, open(group + "stat") as rows:
                # What counts as used holds the file cache too, a checkpoint just read for one: that can be had back.
                cached = next(int(row.split()[1]) for row in rows if row.startswith("inactive_file "))
                free = min(free, int(limit.read()) - int(used.read()) + cached)
        except (OSError, ValueError, StopIteration):
            pass
        return free

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Through calloc, so that the system gives pages when they are first written; `torch.zeros` writes them all."""
        taken = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
        return torch.from_numpy(taken).view(dtype).view(shape)

    def synchronize(self) -> None:
        pass

    def prepare_thread(self) -> None:
        """Denormals cost a hundred times a normal number and mean nothing here; a setting of the calling thread."""
        torch.set_flush_denormal(True)
        if (packed := memory.report()).used:
            log.info("%s", packed)

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)
        library.set_threads(count)

    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Records a step that our kernels compute alone, to replay it without Python between them."""
        recording = library.Recording(self.arena)
        result = recording.run(step)
        # What a step leaves to PyTorch now is small, and its threads would spin beside ours when they have done it.
        torch.set_num_threads(1)
        return recording.replay, result


def _cpu_quota() -> int | None:
    """Whole CPUs that the container may use; PyTorch counts those of the machine. None where there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
