"""Engines that are kept loaded between turns, and ended when the memory is needed for another.

Owns the processes of `child.py`. An idle engine waits for its next line and takes no processor time.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu.family import available_bytes, family, raise_priority, start_tick

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 1200.0  # vLLM takes minutes
RUN_SECONDS = 1800.0


class Failed(Exception):
    """An engine ended or did not answer; the message says what it said last."""


@dataclass(frozen=True)
class Wanted:
    """How an engine is started: `python` is its environment's, `need` the bytes that it takes at most."""

    name: str
    python: Path
    engine: str
    model: Path
    precision: str
    threads: int
    need: int
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    priority: bool = False


class Session:
    """One engine. `started` is how long it took from the start of its process until it was ready."""

    def __init__(self, wanted: Wanted, log: Path) -> None:
        self.wanted, self.log = wanted, log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(wanted.python), "-m", "benchmarks.cpu.child", wanted.engine, str(wanted.model),
                   wanted.precision, str(wanted.threads), *wanted.options]  # fmt: skip
        environment = os.environ | dict(wanted.environment)
        self.began = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        try:
            if wanted.priority:
                raise_priority(self._process.pid)
            self._answer(START_SECONDS)
        except Failed:
            self.close()
            raise
        self.started = time.perf_counter() - self.began
        if wanted.priority:
            raise_priority(self._process.pid)  # what it has started since may be in groups of its own

    def ask(self, scenario: str, **arguments: Any) -> dict[str, Any]:
        """Figures of a scenario. Raises Failed; the engine is then to be closed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([scenario, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise Failed(f"{self.wanted.name} has ended: {self._tail()}") from None
        return self._answer(RUN_SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            if not ready.select(seconds):
                raise Failed(f"{self.wanted.name} did not answer within {seconds:g} s: {self._tail()}")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.wanted.name} ended: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.wanted.name}: {answer['error']} (log: {self.log})")
        return answer

    def _tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-600:].strip() or "it wrote nothing"

    def close(self) -> None:
        """Lets the engine end by itself, then ends what is left of all that it started."""
        pid = self._process.pid
        started = {one: start_tick(one) for one in family(pid)}
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for one, tick in started.items():
            with contextlib.suppress(OSError):
                if tick and start_tick(one) == tick:  # a number may be another process's by now
                    os.kill(one, signal.SIGKILL)
        self._process.wait()


class Sessions:
    """All engines that are loaded, the one used last at the end."""

    def __init__(self, logs: Path, available: Callable[[], int] = available_bytes) -> None:
        self._logs, self._available = logs, available
        self._open: dict[Wanted, Session] = {}

    def get(self, wanted: Wanted) -> Session:
        """The engine, started if it is not there; those unused for longest end until its memory is free."""
        session = self._open.pop(wanted, None)
        if session is None:
            self.make_room(wanted.need)
            session = Session(wanted, self._logs / f"{wanted.name}-{wanted.model.name}-{wanted.precision}.log")
        self._open[wanted] = session
        return session

    def make_room(self, need: int) -> None:
        while self._open and self._available() < need:
            self.drop(next(iter(self._open)))

    def drop(self, wanted: Wanted) -> None:
        if (session := self._open.pop(wanted, None)) is not None:
            session.close()

    def close(self) -> None:
        for wanted in list(self._open):
            self.drop(wanted)
