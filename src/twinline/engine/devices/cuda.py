"""Devices that PyTorch calls `cuda`: NVIDIA's, and those whose stacks take that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from twinline.engine.devices.accelerator import Accelerator


class Cuda(Accelerator):
    providers: tuple[str, ...] = ("grouped", "batched", "reference")
    step_tokens = 8192  # on an H200, 8 prompts of 512 tokens: 6.5 times the rate that 512 gave
    capture_rows = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None

    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Records `step` as a graph after a warm-up on a side stream, as PyTorch's CUDA-graph notes ask.

        All graphs share a stream and a pool of memory: each stream on which products run, and each pool, holds a
        workspace of cuBLAS, 32 MiB on Hopper. Results that are kept are not written by later graphs.
        """
        with torch.cuda.device(self.torch_device):
            self._side = self._side or torch.cuda.Stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                step()
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                result = step()
        return graph.replay, result
