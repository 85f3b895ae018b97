"""Devices that PyTorch calls `cuda`: NVIDIA's, and those whose stacks take that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from twinline.engine.devices.accelerator import Accelerator
from twinline.engine.devices.device import NotCaptured


class Cuda(Accelerator):
    providers: tuple[str, ...] = ("batched", "reference")
    capture_rows = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def __init__(self, device: torch.device):
        super().__init__(device)
        if torch.version.hip is None and torch.cuda.get_device_capability(device)[0] in (9, 10):
            # Elsewhere PyTorch's grouped products read the ends of the groups on the host.
            self.providers = ("grouped", *self.providers)
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None

    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Records `step` as a graph after a warm-up on a side stream, as PyTorch's CUDA-graph notes ask.

        All graphs share a stream and a pool of memory: each stream on which products run, and each pool, holds a
        workspace of cuBLAS, 32 MiB on Hopper. So a result holds until the next replay of any of them.
        """
        with torch.cuda.device(self.torch_device):
            self._side = self._side or torch.cuda.Stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                step()
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                    result = step()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._side = self._pool = None  # what was begun there cannot be gone on with
                raise NotCaptured(f"a step could not be recorded: {str(error).splitlines()[0]}") from error
        return graph.replay, result
