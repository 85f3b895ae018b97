"""Devices that PyTorch calls `cuda`: NVIDIA's, and those whose stacks take that name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from twinline.engine.devices.accelerator import Accelerator


class Cuda(Accelerator):
    providers: tuple[str, ...] = ("grouped", "batched", "reference")
    capture_rows = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Records `step` as a graph after a warm-up on a side stream, as PyTorch's CUDA-graph notes ask."""
        with torch.cuda.device(self.torch_device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = step()
        return graph.replay, result
