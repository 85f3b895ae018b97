"""Recorded decode steps: where a device can record, a step of decodes alone replays one.

Owns the static tensors and the padding. A step is padded to a recorded count of rows and width of pages; rows that pad
write to a scratch page of their own. Not used where the device records nothing, or where a bound op reads values on
the host: `why_not` says which.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.batch import Batch
from twinline.engine.devices.device import Device, NotCaptured
from twinline.engine.models.transformer import LayerCache, Transformer
from twinline.engine.ops.plan import MOST_PLACES, DecodePlan, Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recorded:
    ids_N: Tensor
    positions_N: Tensor
    previous_NX: Tensor | None
    plan: Plan
    decode: DecodePlan
    hidden_NX: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    def __init__(
        self,
        model: Transformer,
        device: Device,
        cache: Sequence[LayerCache],
        spare_page: int,
        *,
        predicts: bool = False,
    ):
        """`spare_page` belongs to nobody: padding rows write there. `predicts`: the steps are those of the model's
        prediction layer, whose cache `cache` is then, and not of its layers."""
        self.model, self.device, self.cache, self.spare_page = model, device, cache, spare_page
        self.predicts = predicts
        self.page_size = cache[0][0].shape[2]
        self.why_not: str | None = None
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        used = [c for c in model.ops.choices if c.op in model.uses()]
        self._gathers = any(c.gathers for c in used)
        readers = [c.op for c in used if c.reads_values]
        if not device.capture_rows:
            self.why_not = f"{device.name} records no steps"
        elif readers:
            self.why_not = f"{', '.join(readers)} read values on the host"

    def hidden(self, batch: Batch, previous_NX: Tensor | None = None) -> Tensor | None:
        """Hidden states of a batch of decodes by replay; None if the batch or the device is not for graphs.

        `previous_NX` is what a prediction goes on from.
        """
        decode = batch.plan.decode
        if self.why_not or decode is None or batch.plan.prefills or decode.count > self.device.capture_rows[-1]:
            return None
        rows = self.device.capture_rows[bisect.bisect_left(self.device.capture_rows, decode.count)]
        width = 1 << (decode.pages_DP.shape[1] - 1).bit_length()
        if self._gathers and rows * width * self.page_size > MOST_PLACES:
            return None  # too much to copy together at once: providers then look at lengths on the host
        recorded = self._recorded.get((rows, width))
        if recorded is None:
            try:
                recorded = self._recorded[rows, width] = self._record(rows, width)
            except NotCaptured as error:
                self.why_not = str(error)
                log.info("decode graphs: %s", self.why_not)
                return None
        self._fill(recorded, batch, decode)
        if recorded.previous_NX is not None:
            assert previous_NX is not None, "a prediction goes on from hidden states"
            recorded.previous_NX[: decode.count] = previous_NX
        recorded.replay()
        return recorded.hidden_NX[: decode.count]

    def _fill(self, r: _Recorded, batch: Batch, decode: DecodePlan) -> None:
        count, width = decode.pages_DP.shape
        r.ids_N[:count] = batch.ids_N
        r.positions_N[:count] = batch.positions_N
        r.plan.slots_N[:count] = batch.plan.slots_N
        r.decode.pages_DP[:count, :width] = decode.pages_DP
        r.decode.pages_DP[:count, width:] = self.spare_page
        r.decode.lengths_D[:count] = decode.lengths_D
        if count < len(r.ids_N):
            r.plan.slots_N[count:] = self.spare_page * self.page_size
            r.decode.pages_DP[count:] = self.spare_page
            r.decode.lengths_D[count:] = 1
        if r.decode.blocked_DL is not None:
            places = torch.arange(r.decode.blocked_DL.shape[1], device=r.decode.blocked_DL.device)
            torch.ge(places, r.decode.lengths_D[:, None], out=r.decode.blocked_DL)

    def _record(self, rows: int, width: int) -> _Recorded:
        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=self.device.torch_device)

        blocked: Tensor | None = None
        if self._gathers:
            blocked = torch.ones(rows, width * self.page_size, dtype=torch.bool, device=self.device.torch_device)
            blocked[:, 0] = False
        decode = DecodePlan(whole(rows, width) + self.spare_page, whole(rows) + 1, blocked)
        plan = Plan(whole(rows) + self.spare_page * self.page_size, decode, ())
        ids, positions = whole(rows), whole(rows)
        if not self.predicts:
            replay, hidden = self.device.capture(lambda: self.model(ids, positions, plan, self.cache))
            return _Recorded(ids, positions, None, plan, decode, hidden, replay)
        facts = self.model.ops.facts
        shape = (rows, self.model.spec.hidden)
        previous = torch.zeros(shape, dtype=facts.dtype, device=self.device.torch_device)
        replay, hidden = self.device.capture(lambda: self.model.predict(ids, previous, positions, plan, self.cache[0]))
        return _Recorded(ids, positions, previous, plan, decode, hidden, replay)
