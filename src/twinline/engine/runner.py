"""The model and its cache: runs a batch, gives logits. The same code for every device.

Owns the cache tensors, those of the prediction layer too. Knows no requests: rows in, logits out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from twinline.engine.batch import Batch
from twinline.engine.chains import GuessChains
from twinline.engine.devices.device import Device
from twinline.engine.graphs import DecodeGraphs
from twinline.engine.models.transformer import Transformer


class Runner:
    def __init__(self, model: Transformer, device: Device, *, pages: int, page_size: int, dtype: torch.dtype):
        """Allocates a cache of `pages` pages of `page_size` tokens for every layer, and one more as scratch."""
        self.model, self.device, self.page_size = model, device, page_size
        self.spare_page = pages  # belongs to nobody

        # Zeros, not empty: a place beyond a sequence's length is weighed with 0, and 0 * NaN is NaN.
        def layer(rows: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
            return tuple(device.zeros((heads, pages + 1, page_size, size), dtype) for heads, size in rows)

        self.cache = [layer(rows) for rows in model.cache_rows()]
        self.predictor_cache = [layer(rows) for rows in model.predictor_rows()]
        # Some op copies the past of a batch together: it must be told which places are beyond a sequence's length.
        self.gathers = any(c.gathers for c in model.ops.choices if c.op in model.uses())
        self.graphs = DecodeGraphs(model, device, self.cache, self.spare_page)
        self.predictor_graphs: DecodeGraphs | None = None
        self.chains: GuessChains | None = None
        if self.predictor_cache:
            self.chains = GuessChains(model, device, self.predictor_cache[0], self.spare_page, self.graphs.why_not)
            self.predictor_graphs = DecodeGraphs(model, device, self.predictor_cache, self.spare_page, predicts=True)

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states `[N, X]` of every row; keys and values are written."""
        replayed = self.graphs.hidden(batch)
        if replayed is not None:
            return replayed
        return self.model(batch.ids_N, batch.positions_N, batch.plan, self.cache)

    @torch.inference_mode()
    def predicted(self, batch: Batch, next_ids_N: Tensor, previous_NX: Tensor, *, begins: bool) -> Tensor:
        """The prediction layer's hidden states `[N, X]` of every row; its keys and values are written.

        As `Transformer.predict`, whose rows are the batch's with other ids.
        """
        assert self.predictor_graphs is not None, "the model was loaded without its predictor"
        if not begins:
            replayed = self.predictor_graphs.hidden(dataclasses.replace(batch, ids_N=next_ids_N), previous_NX)
            if replayed is not None:
                return replayed
        return self.model.predict(
            next_ids_N, previous_NX, batch.positions_N, batch.plan, self.predictor_cache[0], begins=begins
        )

    @torch.inference_mode()
    def logits(self, hidden_NX: Tensor, rows: Sequence[int]) -> Tensor:
        """Logits `[len(rows), vocab]` of the chosen rows."""
        if len(rows) == len(hidden_NX):
            return self.model.logits(hidden_NX)
        return self.model.logits(hidden_NX[torch.tensor(rows, device=hidden_NX.device)])

    def scrub(self, pages: Sequence[int]) -> None:
        """Zeroes pages that may hold NaN after a failed step, so that they cannot poison who gets them next."""
        index = torch.tensor([*pages, self.spare_page], device=self.device.torch_device)
        for layer in (*self.cache, *self.predictor_cache):
            for tensor in layer:
                tensor[:, index] = 0
