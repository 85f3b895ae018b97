"""Watches a chip climb: starts the process that does it, passes on what it tells, and goes on when it hangs or dies.

Owns when a silence is a hang, how a death becomes a finding, and how often the climb is taken up again. Imports no
torch: the process on trial may take anything down but this.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from typing import IO, NamedTuple

import msgspec

from twinline.facts.profiles import Choice, Refused
from twinline.verify.ladder import messages
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.levels import LEVELS, Level

MOST_BREAKS = 3
SIMULATED_SECONDS = 30.0  # a chip that only plays one cannot be waiting for a compiler
START_SECONDS = 300.0  # drivers, imports and the first touch of a chip
LEAST_START = 60.0  # whatever patience was asked for


class CannotBegin(ValueError):
    """The device or the model cannot even be opened; the message says why."""


def refusals(findings: list[Finding]) -> tuple[Refused, ...]:
    """What level 1 refused: a provider that failed at an op in a dtype, or does not have what it needs."""
    return tuple(Refused(op=f.op, provider=f.provider, dtype=f.dtype, reason=f"level 1: {f.text}") for f in findings
                 if f.level == "ops" and f.provider and f.verdict in ("fail", "limit"))  # fmt: skip


class OnTrial(NamedTuple):
    """Which provider of which op; empty where the check is of something else."""

    op: str = ""
    provider: str = ""
    dtype: str = ""


def _on_trial(check: str) -> OnTrial:
    """What hung or died in a check of level 1: it is refused, so that the next provider is tried and later levels go
    on without it."""
    level, *names = check.split(".")
    return OnTrial(*names) if level == "ops" and len(names) == 3 else OnTrial()


class Climb:
    """One climb. Iterate over `events()`; what was learned stands in `findings`, `known`, `choices` and `seconds`."""

    def __init__(self, trial: Trial, patience: float = 0.0):
        """`patience`: seconds without a sign of life that count as a hang; 0: what each level says."""
        self.trial, self.patience = trial, patience
        self.findings: list[Finding] = []
        self.known: messages.Known | None = None
        self.choices: tuple[Choice, ...] = ()
        self.seconds: dict[str, float] = {}
        """Of each level that was climbed."""
        self.whole = False
        """Whether every level that was asked for was climbed to its end, though it may have broken on the way."""
        self._left = [level for level in LEVELS if trial.wants(level.name)]
        self._checks: list[str] = []
        self._breaks = 0
        self._broken: set[tuple[str, str]] = set()
        """(op, provider) that hung or died: in the next dtype it is no news, and does not count as a break."""

    def events(self) -> Generator[messages.Message]:
        """What the climbing process tells, and findings about the process itself. Raises CannotBegin."""
        while self._left:
            with Child(self._order()) as child:
                yield from self._follow(child)
            if self._breaks >= MOST_BREAKS and self._left:
                yield from self.leave_out(f"it hung or died {self._breaks} times")

    def _order(self) -> messages.Order:
        trial = msgspec.structs.replace(self.trial, skip=(*self.trial.skip, *self._checks))
        return messages.Order(trial=trial, levels=tuple(level.name for level in self._left),
                              refused=refusals(self.findings))  # fmt: skip

    def _follow(self, child: Child) -> Iterator[messages.Message]:
        level: Level | None = None
        check, entered = "", time.monotonic()
        while True:
            try:
                line = child.line(self._wait(level))
            except TimeoutError as silence:
                self._spent(level, entered)
                text = f"hangs: no sign of life for {silence} s (if it is only slow, --patience gives it more)"
                yield self._broke(level, check, text, f"answers within {silence} s", _on_trial(check))
                return
            if line is None:
                self._spent(level, entered)
                text = f"the process died: {child.last_words()}"
                yield self._broke(level, check, text, "the process lives", _on_trial(check))
                return
            message = messages.DECODER.decode(line)
            match message:
                case messages.Known():
                    self.known = message
                case messages.Chosen(choices=choices):
                    self.choices = choices
                case messages.Entered(level=name):
                    self._leave(level, entered)
                    level, entered, check = next(one for one in LEVELS if one.name == name), time.monotonic(), ""
                    self._left = [one for one in self._left if one.number >= level.number]
                case messages.Doing(check=name):
                    if check:
                        self._checks.append(check)
                    check = name
                case messages.Found(finding=finding):
                    self.findings.append(finding)
                case messages.Lost(finding=finding):
                    self._spent(level, entered)
                    yield self._broke(
                        level, check, f"device lost: {finding.text}", "the device lives", OnTrial(finding.op)
                    )
                    return
                case messages.Ended(error=error):
                    if error and self.known is None:
                        raise CannotBegin(error)
                    self._leave(level, entered)
                    self._left = []
                    self.whole = not error
                    if error:
                        yield self._add(Finding(check="device", verdict="fail", text=error, rule="it can be opened"))
                    return
            yield message

    def _wait(self, level: Level | None) -> float:
        if level is None:
            return max(self.patience, LEAST_START) if self.patience else START_SECONDS
        simulated = self.known is not None and self.known.simulated
        return self.patience or (min(SIMULATED_SECONDS, level.seconds) if simulated else level.seconds)

    def _leave(self, level: Level | None, entered: float) -> None:
        self._spent(level, entered)
        if level is not None:
            self._left = [one for one in self._left if one.number > level.number]

    def _spent(self, level: Level | None, entered: float) -> None:
        if level is not None:
            self.seconds[level.name] = self.seconds.get(level.name, 0.0) + time.monotonic() - entered

    def _broke(self, level: Level | None, check: str, text: str, rule: str, on: OnTrial) -> messages.Found:
        """Lays it at the door of the check that was being made; where there was none, the level's, which is left."""
        self._breaks += (on.op, on.provider) not in self._broken
        if on.provider:
            self._broken.add((on.op, on.provider))
        if level is None:
            if self.known is None and self._breaks >= MOST_BREAKS:
                raise CannotBegin(f"device {self.trial.device}: {text}")
            return self._add(Finding(check=self._left[0].name, verdict="fail", text=text, rule=rule))
        if check:
            self._checks.append(check)
        else:
            self._left = [one for one in self._left if one.number > level.number]
        return self._add(Finding(check=check or level.name, verdict="fail", text=text, rule=rule, op=on.op,
                                 provider=on.provider, dtype=on.dtype))  # fmt: skip

    def leave_out(self, why: str) -> list[messages.Found]:
        """Ends the climb here: what is left of it is told as skipped."""
        left, self._left = self._left, []
        return [self._add(Finding(check=level.name, verdict="skipped", text=f"not climbed to its end: {why}"))
                for level in left]  # fmt: skip

    def _add(self, finding: Finding) -> messages.Found:
        self.findings.append(finding)
        return messages.Found(finding=finding)


class Child:
    """The climbing process, with its own children; gone when the block ends, however it ends."""

    def __init__(self, order: messages.Order):
        self.order = order
        self.buffer = b""

    def __enter__(self) -> Child:
        self.words: IO[bytes] = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twinline.verify.ladder.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.words, start_new_session=True)  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.out = self.process.stdout
        os.set_blocking(self.out.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.out, selectors.EVENT_READ)
        try:
            self.process.stdin.write(msgspec.json.encode(self.order) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead already: the first line that does not come says so
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it started itself too
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.selector.close()
        self.out.close()
        self.words.close()

    def line(self, seconds: float) -> bytes | None:
        """The next line; None when the process has ended. Raises TimeoutError, with the seconds, after a silence."""
        while b"\n" not in self.buffer:
            if not self.selector.select(seconds):
                raise TimeoutError(f"{seconds:g}")
            part = os.read(self.out.fileno(), 2**16)
            if not part:
                return None
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def last_words(self) -> str:
        """How it ended, and the last line that it wrote to stderr."""
        # Not reaped yet: until then nobody else can get its number, which `__exit__` kills.
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        exited = end.si_code == os.CLD_EXITED
        how = f"exit code {end.si_status}" if exited else f"killed by {signal.Signals(end.si_status).name}"
        self.words.seek(0)
        lines = self.words.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how}{f', {lines[-1][:200]}' if lines else ''}"
