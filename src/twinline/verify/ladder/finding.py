"""What a check found out: one verdict about one thing, with its figures, its rule and the command that repeats it.

Owns the words that all levels and all reports share. Imports no torch; knows no level.
"""

from __future__ import annotations

import math
import shlex
from typing import Literal

import msgspec

# pass: within the rule. limit: the chip cannot do this, and says so; it can serve without. fail: it does it wrongly.
# skipped: could not be tried, and the text says why. note: a figure without a rule.
Verdict = Literal["pass", "limit", "fail", "skipped", "note"]
Figure = float | int | str | bool
UNCLIMBED = "the level can be climbed"  # the rule where a level broke outside of its checks


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`check` is `level.name[.name...]` (`ops.linear`, `model.prefix_cache`), what `twinline adapt --only` takes.

    `text` is one line for a person: what was seen, beside what was allowed. `rule` names the rule that judged. Where an
    op is on trial, `op`, `provider`, `dtype` and `shape` say which. `figures` carry units in their names; one that is
    no number stands there as a word (`nan`, `inf`), since JSON has none for it.
    """

    check: str
    verdict: Verdict
    text: str
    rule: str = ""
    op: str = ""
    provider: str = ""
    dtype: str = ""
    shape: str = ""
    figures: dict[str, Figure] = {}
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if odd := {k: str(v) for k, v in self.figures.items() if isinstance(v, float) and not math.isfinite(v)}:
            msgspec.structs.force_setattr(self, "figures", self.figures | odd)

    @property
    def level(self) -> str:
        return self.check.partition(".")[0]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What is on trial: a device, with a model, under a seed. `only` limits to checks that start with one of these;
    `skip` leaves out some that were made already."""

    device: str
    model: str
    """The folder of the checkpoint."""
    seed: int = 0
    dtype: str = "auto"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def wants(self, check: str) -> bool:
        """Whether `check` is asked for, or lies above or below one that is; and is not to be left out."""
        if self.made(check):
            return False
        return not self.only or any(_within(check, one) or _within(one, check) for one in self.only)

    def made(self, check: str) -> bool:
        """Whether `check` was made already, by a process before this one."""
        return check in self.skip

    def command(self, check: str) -> str:
        """The command that repeats a check, as a shell takes it."""
        words = ["twinline", "adapt", "--device", self.device, "--model", self.model, "--seed", str(self.seed)]
        if self.dtype != "auto":
            words += ["--dtype", self.dtype]
        return shlex.join([*words, "--only", check])


def _within(check: str, above: str) -> bool:
    return check == above or check.startswith(above + ".")
