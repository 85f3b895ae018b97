"""How a fact is known: no number without its origin.

Owns the words for evidence, their order, and the two forms of a fact: a `Figure` (a number) and a `Support` (an
answer). Must not know what the facts are about.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# From the strongest to the weakest.
# measured: read from a tool's output or a benchmark. vendor: published by the chip's vendor or in its own repositories.
# paper: from a paper or its authors' repository. press: news, third-party tables, repositories of others.
# estimate: worked out, not read; the note says how. unknown: not found in the sources that were read.
How = Literal["measured", "vendor", "paper", "press", "estimate", "unknown"]
STRENGTH: tuple[How, ...] = ("measured", "vendor", "paper", "press", "estimate", "unknown")
NOT_FOUND = "not found in the sources read"


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number, how it is known, and where it was read. `value` is None exactly when `how` is `unknown`.

    `others` are what other sources say, none of them stronger than this one; of equally strong ones that disagree the
    lowest is the value.
    """

    value: float | None
    how: How
    source: str
    note: str = ""
    others: tuple[Figure, ...] = ()

    @property
    def known(self) -> bool:
        return self.value is not None

    @property
    def disputed(self) -> bool:
        """Whether another source gives another number."""
        return any(other.value != self.value for other in self.others)

    def faults(self) -> str:
        """Why this is not a proper fact, in one line; empty if it is."""
        if (self.value is None) != (self.how == "unknown"):
            return "a figure is unknown, or it has a value: not both"
        if self.value is not None and not 0 < self.value < 1e15:
            return f"value should be above 0 and below 1e15, not {self.value:g}"
        if not self.source.strip():
            return "source is missing"
        for other in self.others:
            if other.value is None or other.others:
                return "others should hold plain figures with a value"
            if fault := other.faults():
                return f"others: {fault}"
            if STRENGTH.index(other.how) < STRENGTH.index(self.how):
                return f"{other.value:g} is {other.how}, stronger than {self.how}: it should be the value"
            if self.value is not None and other.how == self.how and other.value < self.value:
                return f"{other.value:g} is as strong and lower: it should be the value"
        return "others need a value beside them" if self.others and self.value is None else ""


def unknown(note: str = "") -> Figure:
    return Figure(None, "unknown", NOT_FOUND, note)


# yes: the hardware computes in it. no: it does not. other-encoding: it does, in another bit layout, so that values must
# be converted first. unknown: no source read speaks of it.
Answer = Literal["yes", "no", "unknown", "other-encoding"]


class Support(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether a chip can do something: the answer, how it is known (`evidence`), and where it was read."""

    answer: Answer
    evidence: How
    source: str
    note: str = ""

    def faults(self) -> str:
        """Why this is not a proper fact, in one line; empty if it is."""
        if (self.answer == "unknown") != (self.evidence == "unknown"):
            return "an answer is unknown, or it has evidence: not both"
        return "" if self.source.strip() else "source is missing"


NO_EVIDENCE = Support("unknown", "unknown", NOT_FOUND)
