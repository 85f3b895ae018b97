"""The verdict on a chip, from all findings: sound, limited or unfit, with the rule that gave it.

Owns what weighs how. A grade is of one model in one dtype; determinism is graded beside it and never counts against.

unfit: it answers wrongly where nothing can stand in, or hangs, or dies; no serving.
limited: it answers rightly with something left out (a provider, a dtype, a speed), which is said; serving is allowed.
sound: nothing was found. A climb that was not whole is graded for what was tried, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from twinline.facts.profiles import GradeName
from twinline.verify.ladder.finding import UNCLIMBED, Finding

# Device checks without which no answer can be trusted, whatever the ops say. Others only limit: where the engine is
# touched by them, an op or the model shows it.
ESSENTIAL = ("device.enumerate", "device.memory", "device.content", "device.oom", "device.copies", "device.special",
             "device.first_call")  # fmt: skip
LIMITING = ("device.copies.peer",)
UNREPLACED = ("sampler", "batch", "every")  # who needs an aten op and has no other provider
FATAL_LEVELS = ("layers", "model", "long", "tasks", "faults")
NEEDED_LEVELS = ("device", "ops")  # of which single checks may fail, but which must have been climbed
BREAKS = ("the process lives", "the device lives", "answers within", "it can be opened")
DETERMINISM = {"determinism.repeat": "run to run", "determinism.batch": "alone or in a batch",
               "determinism.order": "first or last in a batch"}  # fmt: skip


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """`rule` is one sentence; `reasons` are the checks behind it, the gravest first. `determinism`: what was compared
    to what was seen: `bitwise`, `varies` or a share of rows."""

    name: GradeName
    rule: str
    reasons: tuple[str, ...] = ()
    determinism: dict[str, str] = {}

    @property
    def serves(self) -> bool:
        return self.name != "unfit"


def grade(findings: Sequence[Finding], dtype: str, complete: bool = True) -> Grade:
    """`dtype` is the one in which the model would be served."""
    fatal = [(f, why) for f in findings if (why := _fatal(f, dtype))]
    limits = [f for f in findings if f.verdict in ("fail", "limit") and not _fatal(f, dtype)]
    steady = dict(_determinism(findings))
    part = "" if complete else " (not the whole ladder)"
    if fatal:
        first, why = fatal[0]
        return Grade(name="unfit", rule=f"unfit{part}: {why} ({first.check}: {first.text})", determinism=steady,
                     reasons=tuple(dict.fromkeys(f.check for f, _ in fatal)))  # fmt: skip
    if limits:
        what = list(dict.fromkeys((*_refused(limits), *(_limit(f) for f in limits if f.level != "ops"))))
        more = f", and {len(what) - 4} more" if len(what) > 4 else ""
        return Grade(name="limited", rule=f"limited{part}: {'; '.join(what[:4])}{more}", determinism=steady,
                     reasons=tuple(dict.fromkeys(f.check for f in limits)))  # fmt: skip
    tried = sum(f.verdict == "pass" for f in findings)
    if not tried and not any(f.verdict == "note" for f in findings):
        return Grade(name="unfit", rule=f"unfit{part}: nothing was tried, so nothing is known", determinism=steady)
    return Grade(name="sound", rule=f"sound{part}: {tried} checks passed, and none failed or met a limit",
                 determinism=steady)  # fmt: skip


def _fatal(f: Finding, dtype: str) -> str:
    """Why this finding alone forbids serving; empty where it does not."""
    if f.verdict not in ("fail", "limit"):
        return ""
    if f.rule.startswith(BREAKS):
        return "it hangs, dies or is lost"
    if f.rule == UNCLIMBED and f.level in NEEDED_LEVELS:
        return f"level {f.level} could not be climbed to its end"
    if f.level == "ops" and f.check.split(".")[2:3] == ["any"]:
        return f"no provider of {f.op} is right in {f.dtype}" if f.dtype == dtype else ""
    if f.check.startswith("device.aten."):
        needs = str(f.figures.get("needed_by", "")).split()
        return f"what the {needs[0]} needs is not there or wrong" if set(needs) & set(UNREPLACED) else ""
    if f.check == f"device.dtypes.{dtype}":
        return f"it does not compute rightly in {dtype}"
    if f.verdict == "fail" and f.check.startswith(ESSENTIAL) and not f.check.startswith(LIMITING):
        return "the device itself cannot be trusted"
    if f.verdict == "fail" and f.level in FATAL_LEVELS:
        return f"level {f.level} fails with the best that is left"
    return ""


def _refused(limits: Sequence[Finding]) -> Iterator[str]:
    """What level 1 leaves out: dtypes without a sound provider of some op, and providers of some ops."""
    ops = [f for f in limits if f.level == "ops"]
    lost: dict[str, list[str]] = {}
    for f in ops:
        if not f.provider:
            lost.setdefault(f.dtype, []).append(f.op)
    for dtype, names in lost.items():
        yield f"{dtype} is not to be used (no sound provider of {', '.join(dict.fromkeys(names))})"
    left: dict[tuple[str, str], list[str]] = {}
    for f in ops:
        if f.provider and f.dtype not in lost:
            left.setdefault((f.provider, f.op), []).append(f.dtype)
    for (provider, op), dtypes in left.items():
        yield f"{provider} does not serve {op} in {', '.join(dict.fromkeys(dtypes))}"


def _limit(f: Finding) -> str:
    """What is left out, in a few words."""
    if f.level == "speed" and f.verdict == "limit":
        return f"{f.op or f.check} is slow"
    if f.level == "determinism" or f.check == "device.determinism":
        return "it does not repeat itself to the bit"
    if f.level == "collectives":
        return "it serves alone, not together with others"
    if f.check.startswith("device.dtypes."):
        return f"{f.check.removeprefix('device.dtypes.')} is not to be used"
    if f.check.startswith("device.aten."):
        word = "missing" if f.verdict == "limit" else "wrong"
        return f"aten {f.check.removeprefix('device.aten.')} is {word} (needed by {f.figures.get('needed_by', '')})"
    return f"{f.check} {'fails' if f.verdict == 'fail' else 'meets a limit'}"


def _determinism(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    for f in findings:
        title = DETERMINISM.get(f.check)
        if title is None or f.verdict in ("skipped",):
            continue
        rows, same = f.figures.get("rows"), f.figures.get("same")
        if f.verdict == "pass":
            yield title, "bitwise"
        elif isinstance(rows, int) and isinstance(same, int) and rows:
            yield title, f"{same / rows:.0%} of rows bitwise"
        else:
            yield title, "varies"
