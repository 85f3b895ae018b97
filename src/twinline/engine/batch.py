"""From a schedule to flat tensors: ids, positions, slots and the attention plan of one step.

Owns the layout of a step: decodes first, then prefill chunks, every row one token. Knows no model and no sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, Plan, PrefillPlan
from twinline.engine.scheduler import Work


@dataclass(frozen=True)
class Batch:
    """`work` in row order; `ends` is the row of each work item's last token."""

    work: tuple[Work, ...]
    ids_N: Tensor
    positions_N: Tensor
    plan: Plan
    ends: tuple[int, ...]


def slots(work: Work, page_size: int) -> list[int]:
    """The cache slots of a work item's positions: page * page size + offset."""
    pages = work.request.pages
    return [pages[p // page_size] * page_size + p % page_size for p in range(work.start, work.end)]


def build(work: tuple[Work, ...], page_size: int, device: torch.device, spare_page: int) -> Batch:
    """The tensors of one step, made on the host and moved to `device` once each.

    `spare_page` belongs to nobody: it fills up the decodes' page table, so that no sequence reads another's page.
    """
    decodes = [w for w in work if w.count == 1]
    chunks = [w for w in work if w.count > 1]
    ids: list[int] = []
    positions: list[int] = []
    where: list[int] = []
    prefills: list[PrefillPlan] = []
    ends: list[int] = []
    for w in (*decodes, *chunks):
        first = len(ids)
        ids += w.request.tokens(w.start, w.end)
        positions += range(w.start, w.end)
        where += slots(w, page_size)
        ends.append(len(ids) - 1)
        if w.count > 1:
            pages_P = torch.tensor(w.request.pages[: -(-w.end // page_size)], device=device)
            prefills.append(PrefillPlan(first, len(ids), w.start, pages_P))
    numbers = torch.tensor([ids, positions, where], device=device)
    plan = Plan(numbers[2], _decode_plan(decodes, page_size, device, spare_page), tuple(prefills))
    return Batch((*decodes, *chunks), numbers[0], numbers[1], plan, tuple(ends))


def _decode_plan(decodes: list[Work], page_size: int, device: torch.device, spare_page: int) -> DecodePlan | None:
    if not decodes:
        return None
    lengths = [w.start + 1 for w in decodes]
    width = -(-max(lengths) // page_size)
    rows = [w.request.pages[: -(-length // page_size)] for w, length in zip(decodes, lengths, strict=True)]
    pages_DP = torch.tensor([r + [spare_page] * (width - len(r)) for r in rows], device=device)
    lengths_D = torch.tensor(lengths, device=device)
    blocked = None
    if min(lengths) < width * page_size:
        blocked = torch.arange(width * page_size, device=device) >= lengths_D[:, None]
    return DecodePlan(pages_DP, lengths_D, blocked)
