"""A prediction layer's whole guess as one recorded step: where a device can record, guesses replay one.

Owns the static tensors: one buffer of whole numbers, filled on the host at once, whose parts are what the step reads.
The layer follows the rows of a step of decodes; each request's last row that holds is taken on by head, token
and layer, again and again, with nothing read by the host in between.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine import noise
from twinline.engine.devices.device import Device, NotCaptured
from twinline.engine.draw import maxima, winners
from twinline.engine.models.transformer import LayerCache, Transformer
from twinline.engine.ops.plan import DecodePlan, Plan

log = logging.getLogger(__name__)

MOST_RECORDED = 64  # mixes of rows, requests, pages and depth; the one that was longest not asked for goes


@dataclass(frozen=True, slots=True)
class Link:
    """Rows of one request: its pages, the positions of its rows and the ids that follow each, which row is the last
    that holds, and the position of the first guess's own row. No rows where the layer has followed them already.

    The first guess is of the token at position `known`; it is drawn at `temperature` with the noise of `seed`."""

    pages: list[int]
    positions: range
    next_ids: Sequence[int]
    last: int
    then: int
    known: int
    seed: int
    temperature: float


@dataclass(frozen=True)
class _Recorded:
    numbers: Tensor
    host: np.ndarray
    temperatures: Tensor | None  # where some guess is not greedy
    previous_NX: Tensor
    drawn: list[tuple[Tensor, Tensor]]
    replay: Callable[[], None]


class GuessChains:
    def __init__(self, model: Transformer, device: Device, cache: LayerCache, spare_page: int, why_not: str | None):
        """`why_not`: why steps are not recorded, if they are not; as `DecodeGraphs`."""
        self.model, self.device, self.cache, self.spare_page = model, device, cache, spare_page
        self.page_size = cache[0].shape[2]
        self.why_not = why_not
        if why_not is None and any(c.gathers for c in model.ops.choices if c.op in model.uses()):
            self.why_not = "an op copies the past of a batch together"
        self._recorded: dict[tuple[int, int, int, int, bool], _Recorded] = {}

    def guesses(self, links: Sequence[Link], previous_NX: Tensor, depth: int) -> list[list[int]] | None:
        """`depth` tokens for each request, fewer where the layer's logits are no numbers; None if this cannot be
        recorded. `previous_NX`: the model's hidden states of the rows, or where there are none the layer's own, one for
        each request."""
        if self.why_not is not None:
            return None
        size, ends = self.page_size, [link.then + depth - 1 for link in links]
        width = 1 << (max(end // size for end in ends)).bit_length()
        rows = sum(len(link.positions) for link in links)
        key = rows, len(links), width, depth, any(link.temperature > 0 for link in links)
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            if len(self._recorded) == MOST_RECORDED:
                del self._recorded[next(iter(self._recorded))]
            try:
                recorded = self._record(*key)
            except NotCaptured as error:
                self.why_not = str(error)
                log.info("chains of guesses: %s", self.why_not)
                return None
        self._recorded[key] = recorded
        self._fill(recorded, links, width, depth)
        recorded.previous_NX.copy_(previous_NX)
        recorded.replay()
        found: list[list[int]] = [[] for _ in links]
        for place, (best, token) in enumerate(recorded.drawn):
            for guess, value, one in zip(found, best.tolist(), token.tolist(), strict=True):
                if len(guess) == place and math.isfinite(value):
                    guess.append(one)
        return found

    def _fill(self, r: _Recorded, links: Sequence[Link], width: int, depth: int) -> None:
        """In the order of `_record`'s parts."""
        size = self.page_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        chosen: list[int] = []
        for link in links:
            if link.positions:
                chosen.append(len(ids) + link.last)
            ids += link.next_ids
            positions += link.positions
            slots += batches.slots(link.pages, link.positions.start, link.positions.stop, size)
        numbers = [*ids, *positions, *slots, *(p + 1 for p in positions), *chosen]
        for place in range(depth - 1):
            at = [link.then + place for link in links]
            numbers += at
            numbers += [one.pages[p // size] * size + p % size for one, p in zip(links, at, strict=True)]
            numbers += [p + 1 for p in at]
        if r.temperatures is not None:
            for place in range(depth):
                for link in links:
                    numbers += noise.key(link.seed, link.known + place)
            r.temperatures.copy_(torch.tensor([link.temperature for link in links]))
        host = r.host
        host[: len(numbers)] = numbers
        table = host[len(numbers) :].reshape(-1, width)
        table[:] = self.spare_page
        row, below = 0, len(ids)
        for link in links:
            count = min(width, len(link.pages))
            pages = link.pages[:count]
            table[row : row + len(link.positions), :count] = pages
            table[below, :count] = pages
            row, below = row + len(link.positions), below + 1
        if r.numbers.device.type != "cpu":
            r.numbers.copy_(torch.from_numpy(host))

    def _record(self, rows: int, requests: int, width: int, depth: int, sampled: bool) -> _Recorded:
        """A buffer of ids, positions, slots and lengths of the rows, each request's chosen row, then for each further
        guess positions, slots and lengths, for each guess the noise's keys if one is `sampled`, at last the pages of
        the rows and of the requests."""
        model, parts = self.model, [rows] * 4 + [requests if rows else 0] + [requests] * (3 * (depth - 1))
        parts.append(2 * requests * depth if sampled else 0)
        whole = sum(parts) + (rows + requests) * width
        numbers = torch.zeros(whole, dtype=torch.int64, device=self.device.torch_device)
        host = numbers.numpy() if numbers.device.type == "cpu" else np.zeros(whole, dtype=np.int64)
        ids, positions, slots, lengths, chosen, *later, keys = numbers[: sum(parts)].split(parts)
        tables = numbers[sum(parts) :].view(-1, width)
        tables.fill_(self.spare_page)
        for each in (lengths, *later[2::3]):
            each.fill_(1)
        for each in (slots, *later[1::3]):
            each.fill_(self.spare_page * self.page_size)
        plan = Plan(slots, DecodePlan(tables[:rows], lengths, None), ())
        plans = [
            (at, Plan(slot, DecodePlan(tables[rows:], length, None), ()))
            for at, slot, length in zip(later[::3], later[1::3], later[2::3], strict=True)
        ]
        shape, dtype = (rows or requests, model.spec.hidden), model.ops.facts.dtype
        previous = torch.zeros(shape, dtype=dtype, device=self.device.torch_device)
        temperatures = torch.ones(requests, device=self.device.torch_device) if sampled else None
        drawn: list[tuple[Tensor, Tensor]] = []

        def draw(state: Tensor) -> None:
            logits, first = model.logits(state), 2 * requests * len(drawn)
            if temperatures is None:
                drawn.append(maxima(logits))
            else:
                drawn.append(winners(logits, keys[first : first + 2 * requests].view(requests, 2), temperatures))

        def step() -> Tensor:
            drawn.clear()
            state = previous
            if rows:
                state = model.ops.embedding(chosen, model.predict(ids, previous, positions, plan, self.cache))
            draw(state)
            for at, one in plans:
                state = model.predict(drawn[-1][1], state, at, one, self.cache)
                draw(state)
            return drawn[-1][1]

        replay, _ = self.device.capture(step)
        return _Recorded(numbers, host, temperatures, previous, drawn, replay)
