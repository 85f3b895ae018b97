"""Where the tokens of one step find their past: the attention plan that every attention op reads.

A cache tensor is `[heads, pages, page size, head size]`, so that what one head reads of a page lies together; a
sequence's past is a list of pages. Rows of the flat batch come with the decodes (one new token each) first, then the
prefill chunks, each a run of rows of one sequence.

Shape suffixes: N rows of the batch, D decodes, P pages of one sequence, T rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Sequences times context that a provider may copy together at once: one long context beside many short ones would
# otherwise make every short one as long.
MOST_PLACES = 2**16


@dataclass(frozen=True)
class DecodePlan:
    """`pages_DP` is padded with a page that belongs to nobody; `lengths_D` counts the context, the new token included;
    `blocked_DL` is True for the places beyond a sequence's length (L = P * page size), or None when there are none."""

    pages_DP: Tensor
    lengths_D: Tensor
    blocked_DL: Tensor | None

    @property
    def count(self) -> int:
        return self.pages_DP.shape[0]


@dataclass(frozen=True)
class PrefillPlan:
    """Rows `start:end` are one sequence's positions `past` onwards; `pages_P` covers past and chunk.

    `decoded`: they are of an output that goes on after a move or a preemption, or the one token of a prompt before it,
    and were decodes when they were made; a provider whose decodes round elsewhere than its prefills computes them as
    decodes again.
    """

    start: int
    end: int
    past: int
    pages_P: Tensor
    decoded: bool = False

    @property
    def total(self) -> int:
        return self.past + self.end - self.start


@dataclass(frozen=True)
class Plan:
    """`slots_N` is where each row's keys and values go: page * page size + offset."""

    slots_N: Tensor
    decode: DecodePlan | None
    prefills: tuple[PrefillPlan, ...]
