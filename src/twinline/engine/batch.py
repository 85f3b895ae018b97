"""From a schedule to flat tensors: ids, positions, slots and the attention plan of one step.

Owns the layout of a step: decodes first, then prefill chunks, every row one token. A decode with a draft is as many
decodes, each a position on: they see one another's keys, for all of a layer's are written before it attends. Knows no
model and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, Plan, PrefillPlan
from twinline.engine.scheduler import Work


@dataclass(frozen=True)
class Batch:
    """`work` in row order; `ends` is the row of each work item's last token, the last of its draft if it has one."""

    work: tuple[Work, ...]
    ids_N: Tensor
    positions_N: Tensor
    plan: Plan
    ends: tuple[int, ...]


def slots(pages: Sequence[int], begin: int, end: int, page_size: int) -> list[int]:
    """The cache slots of some positions of a sequence: page * page size + offset."""
    found: list[int] = []
    while begin < end:
        index, offset = divmod(begin, page_size)
        count = min(page_size - offset, end - begin)
        first = pages[index] * page_size + offset
        found += range(first, first + count)
        begin += count
    return found


class PageTables:
    """The pages of sequences that decode, as arrays that are kept from one step to the next."""

    def __init__(self, spare_page: int) -> None:
        """`spare_page` belongs to nobody: it fills up short rows, so that no sequence reads another's page."""
        self.spare_page = spare_page
        self._rows: dict[str, tuple[list[int], np.ndarray]] = {}

    def of(self, decodes: Sequence[Work], page_size: int) -> np.ndarray:
        """Pages `[D, P]` that hold the past and the new token of each row of the decodes."""
        counts = [-(-w.end // page_size) for w in decodes]
        table = np.full((sum(w.count for w in decodes), max(counts)), self.spare_page, dtype=np.int64)
        rows: dict[str, tuple[list[int], np.ndarray]] = {}
        first = 0
        for w, count in zip(decodes, counts, strict=True):
            request = w.request
            pages, row = self._rows.get(request.id, (None, None))
            if pages is not request.pages or row is None or len(row) < count:
                # A list that is replaced is another one; a list that lives only grows.
                row = np.array(request.pages, dtype=np.int64)
            rows[request.id] = request.pages, row
            table[first : first + w.count, :count] = row[:count]
            first += w.count
        self._rows = rows
        return table


def build(
    work: tuple[Work, ...],
    page_size: int,
    device: torch.device,
    spare_page: int,
    tables: PageTables | None = None,
    *,
    blocked: bool = True,
) -> Batch:
    """The tensors of one step, made on the host and moved to `device` once each.

    `tables` are kept by who builds one step after the other. `blocked`: whether some op wants to be told which places
    are beyond a sequence's length.
    """
    decodes = [w for w in work if w.count == 1 or w.draft]
    chunks = [w for w in work if w.count > 1 and not w.draft]
    ids: list[int] = []
    positions: list[int] = []
    where: list[int] = []
    prefills: list[PrefillPlan] = []
    ends: list[int] = []
    for w in decodes:
        request, at = w.request, w.start
        prompt = len(request.prompt)
        ids.append(request.prompt[at] if at < prompt else request.output[at - prompt])
        positions.append(at)
        where.append(request.pages[at // page_size] * page_size + at % page_size)
        if w.draft:
            ids += w.draft
            positions += range(at + 1, w.end)
            where += slots(request.pages, at + 1, w.end, page_size)
        ends.append(len(ids) - 1)
    rows = len(ids)
    for w in chunks:
        first = len(ids)
        ids += w.request.tokens(w.start, w.end)
        positions += range(w.start, w.end)
        where += slots(w.request.pages, w.start, w.end, page_size)
        ends.append(len(ids) - 1)
        output = min(max(len(w.request.prompt), w.start), w.end)  # where the chunk's output begins, if it has any
        for begin, end in ((w.start, output), (output, w.end)):
            if begin < end:
                pages_P = torch.tensor(w.request.pages[: -(-end // page_size)], device=device)
                at = first + begin - w.start
                alone = end - begin == 1  # the chunk would have been a decode, had there been no output
                prefills.append(PrefillPlan(at, at + end - begin, begin, pages_P, decoded=begin == output or alone))
    numbers = torch.from_numpy(np.array((ids, positions, where), dtype=np.int64)).to(device)
    decode = None
    if decodes:
        table = (tables or PageTables(spare_page)).of(decodes, page_size)
        pages_DP, lengths_D = torch.from_numpy(table).to(device), numbers[1, :rows] + 1
        beyond_DL = _beyond(positions[:rows], table.shape[1] * page_size, lengths_D) if blocked else None
        decode = DecodePlan(pages_DP, lengths_D, beyond_DL)
    plan = Plan(numbers[2], decode, tuple(prefills))
    return Batch((*decodes, *chunks), numbers[0], numbers[1], plan, tuple(ends))


def rows_at(
    where: Sequence[tuple[list[int], int]], page_size: int, device: torch.device, spare_page: int, *, blocked: bool
) -> Batch:
    """One decode for each `(pages, position)`, its ids still to come: rows of no work."""
    positions = [at for _, at in where]
    table = np.full((len(where), max(positions) // page_size + 1), spare_page, dtype=np.int64)
    for row, (pages, at) in zip(table, where, strict=True):
        row[: at // page_size + 1] = pages[: at // page_size + 1]
    slot = [pages[at // page_size] * page_size + at % page_size for pages, at in where]
    numbers = torch.from_numpy(np.array((positions, slot), dtype=np.int64)).to(device)
    lengths_D = numbers[0] + 1
    beyond_DL = _beyond(positions, table.shape[1] * page_size, lengths_D) if blocked else None
    decode = DecodePlan(torch.from_numpy(table).to(device), lengths_D, beyond_DL)
    return Batch((), torch.zeros_like(numbers[0]), numbers[0], Plan(numbers[1], decode, ()), tuple(range(len(where))))


def _beyond(positions: list[int], places: int, lengths_D: Tensor) -> Tensor | None:
    """True for the places beyond a sequence's length; None when there are none."""
    if min(positions) + 1 == places:
        return None
    return torch.arange(places, device=lengths_D.device) >= lengths_D[:, None]
