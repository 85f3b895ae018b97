"""One check, tried: whatever the device does in it ends as a finding, and never ends the ladder.

Owns how an exception becomes a verdict. Knows no check.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as changed

import msgspec
import torch

from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding, Verdict

LACKING = re.compile(r"not (yet )?(been )?(implemented|supported)|unsupported|unimplemented|no kernel", re.I)


class NotReady(Exception):
    """What the check needs is not there, through no fault of what it tries: the finding is `skipped`."""


@dataclass(frozen=True)
class At:
    """Where a check is while it runs: told apart in the text of a finding that an exception ends."""

    op: str = ""
    provider: str = ""
    place: str = ""


class Where:
    """What an attempt is doing just now; a body that tries several ops keeps it up to date."""

    def __init__(self) -> None:
        self.at = At()

    def is_(self, **what: str) -> None:
        self.at = changed(self.at, **what)


def verdict_of(error: BaseException) -> Verdict:
    """`limit` where the device clearly says that it has no such thing; else it broke."""
    if isinstance(error, NotReady):
        return "skipped"
    lacking = isinstance(error, NotImplementedError) or bool(LACKING.search(first_line(error)))
    return "limit" if lacking and not isinstance(error, torch.OutOfMemoryError) else "fail"


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else ""


SIGN_SECONDS = 2.0


def begin(bench: Bench, check: str) -> None:
    """Tells what is being done from now on."""
    bench.check, bench.told = check, time.monotonic()
    bench.doing(check)


def alive(bench: Bench) -> None:
    """Called between the steps of a long check: tells again, every few seconds, what is being done. What hangs says
    nothing more."""
    now = time.monotonic()
    if bench.check and now - bench.told > SIGN_SECONDS:
        bench.told = now
        bench.doing(bench.check)


@contextmanager
def host_at_work(bench: Bench) -> Iterator[None]:
    """While the host computes what a check compares with: signs of life are given for it. A large model's float64 run
    takes longer than a chip may be silent, and is not the chip's hang."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(SIGN_SECONDS):
            if bench.check:
                bench.doing(bench.check)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def attempt(
    bench: Bench, check: str, body: Callable[[Where], Iterable[Finding]], *, op: str = "", rule: str = "it runs"
) -> Iterator[Finding]:
    """The findings of `body`, if `check` is asked for; an exception is one more, with what was being done."""
    if not bench.trial.wants(check):
        return
    begin(bench, check)
    where, since = Where(), time.perf_counter()
    where.is_(op=op)
    try:
        for finding in body(where):
            now = time.perf_counter()
            yield msgspec.structs.replace(finding, seconds=finding.seconds or now - since)
            since = time.perf_counter()
    except Exception as error:
        yield broken(check, error, where.at, rule=rule, seconds=time.perf_counter() - since)


def broken(check: str, error: Exception, at: At = At(), *, rule: str = "it runs", seconds: float = 0.0) -> Finding:
    if isinstance(error, NotReady):
        return Finding(check=check, verdict="skipped", text=first_line(error), seconds=seconds)
    place = f" in {at.place}" if at.place else ""
    doing = f" while {at.op}{f' ({at.provider})' if at.provider else ''} was called{place}" if at.op else place
    return Finding(
        check=check,
        verdict=verdict_of(error),
        text=f"{type(error).__name__}{doing}: {first_line(error)}",
        rule=rule,
        op=at.op,
        provider=at.provider,
        seconds=seconds,
    )
