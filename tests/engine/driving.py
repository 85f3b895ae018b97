"""An engine that a test drives step by step, in the test's own thread.

Owns the defaults of small engines, the way from token ids to all their logits, and when two engines gave the same ones.
Knows no reference. `TWINLINE_TEST_DEVICE=cuda` drives them on another device: what the tests hold the engine to does
not change with it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine.build import Built, Options, build
from twinline.engine.devices.device import Device, open_device
from twinline.engine.loop import Engine
from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.scheduler import Work

DEVICE = os.environ.get("TWINLINE_TEST_DEVICE", "cpu")
DEFAULTS: dict[str, Any] = {"device": DEVICE, "dtype": "float32", "kv_tokens": 8192, "max_tokens_per_step": 256,
                            "max_running": 32}  # fmt: skip
# An accelerator may add up what experts give in another order each time.
SAME_BITS = DEVICE.partition(":")[0] in ("cpu", "simchip")
ROUNDINGS = 32 * torch.finfo(torch.float32).eps


def same(got: Tensor, want: Tensor) -> bool:
    """Whether two engines with the same float32 weights gave the same logits: the same bits where the device promises
    them, else within a few roundings of the largest |logit|."""
    if SAME_BITS:
        return torch.equal(got, want)
    return got.shape == want.shape and bool((got - want).abs().max() <= ROUNDINGS * want.abs().max())


def only(patch: pytest.MonkeyPatch, *providers: str) -> None:
    """Engines that are built from now on try these providers in this order, whatever their device's own is."""

    def opened(name: str) -> Device:
        device = open_device(name)
        device.providers = providers
        return device

    patch.setattr("twinline.engine.build.open_device", opened)


class Driven:
    def __init__(self, folder: Path, **options: Any) -> None:
        self.outputs: dict[str, list[Output]] = defaultdict(list)
        self.built: Built = build(folder, Options(**(DEFAULTS | options)), self._deliver)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            assert output.error is None, output.error
            self.outputs[output.request_id].append(output)

    @property
    def engine(self) -> Engine:
        return self.built.engine

    @property
    def device(self) -> torch.device:
        return self.built.device.torch_device

    @property
    def model(self) -> Any:
        return self.built.engine.runner.model

    def submit(self, name: str, prompt: Sequence[int], *, output: Sequence[int] = (), **params: Any) -> Request:
        """Greedy, with the chosen token's log-probability, unless `params` say otherwise."""
        asked = SamplingParams(**({"max_tokens": 64, "temperature": 0.0, "logprobs": 0} | params))
        request = Request(name, list(prompt), asked, output=list(output))
        self.engine.submit(request)
        return request

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.engine.step()

    def run(self) -> None:
        """Steps until nothing is left, and checks the books."""
        while self.engine.scheduler.has_work:
            self.engine.step()
        self.engine.scheduler.check_integrity()

    def logprobs(self, request: Request) -> list[float]:
        """The log-probability of each output token that this engine sampled."""
        return [p.logprob for output in self.outputs[request.id] for p in output.logprobs]

    def logits(self, ids: Sequence[int], chunks: Sequence[int] = ()) -> Tensor:
        """Logits `[N, V]` of every position, straight from the runner; `chunks` are the steps' sizes (all at once)."""
        pool, runner = self.engine.pool, self.engine.runner
        pages = pool.allocate(pool.pages_for(len(ids)))
        assert pages is not None
        request = Request("logits", list(ids), SamplingParams(), pages=pages)
        rows, start = [], 0
        for count in chunks or [len(ids)]:
            batch = batches.build(
                (Work(request, start, count),), runner.page_size, runner.device.torch_device, runner.spare_page
            )
            rows.append(runner.logits(runner.hidden(batch), range(count)))
            start += count
        assert start == len(ids)
        pool.release(pages)
        return torch.cat(rows).cpu()
