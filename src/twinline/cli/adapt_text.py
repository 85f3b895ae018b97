"""What `twinline adapt` says while it climbs, and at the end, for people.

Owns the lines. A terminal gets the check that is being made on a line that is overwritten; a file or pipe does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from twinline.cli.table import aligned
from twinline.verify.ladder import messages
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.levels import LEVELS
from twinline.verify.ladder.report import Report

SIMULATED = "SIMULATED CHIP: no silicon was tried; what follows says nothing about real hardware"
MOST_ALARMS = 12
MARKS = {"pass": "pass", "limit": "LIMIT", "fail": "FAIL", "skipped": "skip", "note": "note"}


class Progress:
    """Lines as things happen."""

    def __init__(self, to: TextIO):
        self.to, self.live = to, to.isatty()
        self.transient = self.begun = False

    def begin(self, trial: Trial) -> None:
        self._say(f"adapting {trial.device} with {trial.model}, seed {trial.seed}")

    def tell(self, message: messages.Message) -> None:
        match message:
            case messages.Known() if self.begun:
                self._say("  going on in a new process")
            case messages.Known():
                self.begun = True
                if message.simulated:
                    self._say(SIMULATED)
                self._say(f"{message.device_name}: {message.architecture} in {message.dtype}; computes in "
                          f"{', '.join(message.dtypes)}; torch {message.versions.get('torch', '?')}")  # fmt: skip
            case messages.Entered(level=name):
                level = next(one for one in LEVELS if one.name == name)
                self._say(f"level {level.number}, {level.title}")
            case messages.Doing(check=check):
                self._pass_by(f"  {check} ...")
            case messages.Found(finding=finding):
                self._say(line(finding))

    def end(self) -> None:
        self._pass_by("")

    def _say(self, text: str) -> None:
        self._pass_by("")
        print(text, file=self.to, flush=True)

    def _pass_by(self, text: str) -> None:
        """Something that the next line replaces; nothing where there is no terminal."""
        if self.live and (text or self.transient):
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=self.to, flush=True)
            self.transient = bool(text)


def line(f: Finding) -> str:
    """A finding in one line."""
    took = f"  [{f.seconds:.1f} s]" if f.seconds >= 1 else ""
    return f"  {MARKS[f.verdict]:5} {f.check}: {f.text}{took}"


def summary(done: Report, written: Sequence[Path]) -> Iterator[str]:
    """The grade, the levels, what is wrong and how to see it again."""
    yield ""
    if done.simulated:
        yield SIMULATED
    yield f"grade: {done.grade.name.upper()}"
    yield f"  {done.grade.rule}"
    for what, seen in done.grade.determinism.items():
        yield f"  determinism, {what}: {seen}"
    yield ""
    columns = ("pass", "limit", "fail", "skipped")
    rows: list[tuple[str, ...]] = [("level", *columns, "seconds")]
    for level in done.levels:
        counts = (str(level.counts.get(verdict, 0)) for verdict in columns)
        rows.append((f"{level.number} {level.name}", *counts, f"{level.seconds:.1f}"))
    yield aligned(rows, "  ")
    for c in done.fallen:
        yield f"  fallback: the reference serves {c.op} in {c.dtype}, right and slow"
    worst = next((r for r in done.ranks), None)
    if worst is not None:
        yield f"  worst op: {worst.op} by {worst.provider} in {worst.dtype}: {worst.text}"
    if done.divergent:
        yield f"  first divergent: {done.divergent}"
    shown: set[str] = set()
    for f in done.alarms:
        if f.check in shown or len(shown) == MOST_ALARMS:
            continue
        shown.add(f.check)
        yield f"  again: {done.commands[f.check]}"
    left = len(done.commands) - len(shown)
    if left > 0:
        yield f"  and {left} more checks: see the report"
    yield f"  {done.seconds:.1f} s in all"
    if written:
        yield f"  written: {', '.join(map(str, written))}"
