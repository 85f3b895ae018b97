"""What a check found out: one verdict about one thing, with its figures, its rule and the command that repeats it.

Owns the words that all levels and all reports share. Imports no torch; knows no level.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# pass: within the rule. limit: the chip cannot do this, and says so; it can serve without. fail: it does it wrongly.
# skipped: could not be tried, and the text says why. note: a figure without a rule.
Verdict = Literal["pass", "limit", "fail", "skipped", "note"]
Figure = float | int | str | bool


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`check` is `level.name[.name...]` (`ops.linear`, `model.prefix_cache`), what `twinline adapt --only` takes.

    `text` is one line for a person: what was seen, beside what was allowed. `rule` names the rule that judged. Where an
    op is on trial, `op`, `provider`, `dtype` and `shape` say which. `figures` carry units in their names.
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
        if any(_within(check, one) for one in self.skip):
            return False
        return not self.only or any(_within(check, one) or _within(one, check) for one in self.only)

    def command(self, check: str) -> str:
        """The command that repeats a check."""
        parts = ["twinline adapt", f"--device {self.device}", f"--model {self.model}", f"--seed {self.seed}"]
        if self.dtype != "auto":
            parts.append(f"--dtype {self.dtype}")
        return " ".join([*parts, f"--only {check}"])


def _within(check: str, above: str) -> bool:
    return check == above or check.startswith(above + ".")
