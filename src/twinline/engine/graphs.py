"""Recorded decode steps: where a device can capture graphs, a step of decodes alone replays one.

Owns the static tensors and the padding. A step is padded to a recorded count of rows and width of pages; rows that pad
write to a scratch page of their own. Not used where the device captures nothing, or where a bound op reads values on
the host: `why_not` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.batch import Batch
from twinline.engine.devices.device import Device
from twinline.engine.models.transformer import LayerCache, Transformer
from twinline.engine.ops.plan import MOST_PLACES, DecodePlan, Plan

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class _Recorded:
    ids_N: Tensor
    positions_N: Tensor
    plan: Plan
    decode: DecodePlan
    blocked_DL: Tensor
    hidden_NX: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    def __init__(self, model: Transformer, device: Device, cache: Sequence[LayerCache], spare_page: int):
        """`spare_page` belongs to nobody: padding rows write there."""
        self.model, self.device, self.cache, self.spare_page = model, device, cache, spare_page
        self.page_size = cache[0][0].shape[2]
        self.why_not: str | None = None
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        if not device.captures:
            self.why_not = f"{device.name} captures no graphs"
            return
        readers = [c.op for c in model.ops.choices if c.reads_values and c.op in model.uses()]
        if readers:
            self.why_not = f"{', '.join(readers)} read values on the host"

    def hidden(self, batch: Batch) -> Tensor | None:
        """Hidden states of a batch of decodes by replay; None if the batch or the device is not for graphs."""
        decode = batch.plan.decode
        if self.why_not or decode is None or batch.plan.prefills or decode.count > ROWS[-1]:
            return None
        rows = next(r for r in ROWS if r >= decode.count)
        width = 1 << (decode.pages_DP.shape[1] - 1).bit_length()
        if rows * width * self.page_size > MOST_PLACES:
            return None  # too much to gather at once: providers then look at lengths on the host
        recorded = self._recorded.get((rows, width)) or self._record(rows, width)
        self._fill(recorded, batch, decode)
        recorded.replay()
        return recorded.hidden_NX[: decode.count]

    def _fill(self, r: _Recorded, batch: Batch, decode: DecodePlan) -> None:
        count, width = decode.pages_DP.shape
        r.ids_N[:count] = batch.ids_N
        r.positions_N[:count] = batch.positions_N
        r.plan.slots_N.fill_(self.spare_page * self.page_size)
        r.plan.slots_N[:count] = batch.plan.slots_N
        r.decode.pages_DP.fill_(self.spare_page)
        r.decode.pages_DP[:count, :width] = decode.pages_DP
        r.decode.lengths_D.fill_(1)
        r.decode.lengths_D[:count] = decode.lengths_D
        places = torch.arange(r.blocked_DL.shape[1], device=r.blocked_DL.device)
        torch.ge(places, r.decode.lengths_D[:, None], out=r.blocked_DL)

    def _record(self, rows: int, width: int) -> _Recorded:
        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=self.device.torch_device)

        blocked = torch.zeros(rows, width * self.page_size, dtype=torch.bool, device=self.device.torch_device)
        blocked[:, 1:] = True
        decode = DecodePlan(whole(rows, width) + self.spare_page, whole(rows) + 1, blocked)
        plan = Plan(whole(rows) + self.spare_page * self.page_size, decode, ())
        ids, positions = whole(rows), whole(rows)
        out: list[Tensor] = []

        def step() -> None:
            hidden = self.model(ids, positions, plan, self.cache)
            out[:] = [out[0].copy_(hidden)] if out else [hidden.clone()]

        step()
        replay = self.device.capture(step)
        assert replay is not None
        recorded = _Recorded(ids, positions, plan, decode, blocked, out[0], replay)
        self._recorded[rows, width] = recorded
        return recorded
