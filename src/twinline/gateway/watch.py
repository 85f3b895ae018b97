"""Looks after the lines of one model while they serve: silence, drains, and whether one that was out may come back.

Owns when silence is a hang: busy is told from dead by tokens and by the engine's own count of progress, never by an
open port, and no line is blamed for time in which we stood still ourselves. Must not know how a line is started, nor
how a choice goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from twinline.gateway.choice import Choice
from twinline.gateway.supply import Supply
from twinline.lines.client import Call
from twinline.lines.line import Line, fault_of
from twinline.lines.protocol import LineBroken, LineError

log = logging.getLogger(__name__)


PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of silence. `quiet` is the least after which a line is asked whether it still computes; lines with slow
    steps get 20 of their 99th-percentile gaps, up to `longest`. `stream` is how much longer one stream may be silent
    while others of its line are not, in those units; `first` is for the first token, beside what was predicted. `ask`
    bounds the question. `idle`: a line that answers it but computes nothing for so long is dead all the same; `blind`
    is the same of one that generates and tells nothing of what it computes: remotes think for minutes without a word,
    and Ollama reads a model from disk. `slowest` is how many tokens a second an engine that cannot be seen computing
    vectors may take beside `idle`.
    """

    tick: float = 0.25
    quiet: float = 1.5
    longest: float = 8.0
    stream: float = 4.0
    first: float = 30.0
    ask: float = 2.0
    idle: float = 60.0
    blind: float = 600.0
    slowest: float = 20.0
    probe: float = 30.0


@dataclass(slots=True)
class _Seen:
    """What is known of one line's doing."""

    moved: float  # when a token last came from it, or its own count last grew
    progress: float | None = None
    asking: bool = False
    told: float = 0.0  # when routing last heard how far the streams are
    # At the last look, each with when it last gave something and how long we had stood still by then. What ended since
    # then moved it, too.
    calls: dict[Call, tuple[float, float]] = field(default_factory=dict)


class Watch:
    """One per supply. `run` until cancelled."""

    def __init__(self, supply: Supply, patience: Patience | None = None) -> None:
        self._supply = supply
        self._patience = patience or Patience()
        self._seen: dict[Line, _Seen] = {}
        self._looked = time.monotonic()
        self._stood = 0.0  # how many seconds the loop stood still in all, beyond its ticks: in them nobody was silent
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._patience.tick)
                try:
                    self.look(time.monotonic())
                except Exception:
                    log.exception("watching the lines of %s failed", self._supply.model)
        finally:
            for task in self._tasks:
                task.cancel()

    def look(self, now: float) -> None:
        """One round over the lines."""
        before, late = self._looked, self._late(now)
        self._looked, self._stood = now, self._stood + late
        if late > self._patience.quiet:
            log.warning("the gateway stood still for %.1f s: no line is blamed for them", late)
        supply = self._supply
        lines = list(supply.lines.values())
        for line in lines:
            if late > self._patience.quiet:
                for choice in line.calls.values():
                    choice.segments[-1].placement.spoil()
            supply.router.station(line.name).looked = now
            if line.calls:
                self._watch(line, now, before, late)
            else:
                self._seen.pop(line, None)
            circuit = supply.circuits[line.name]
            if line.state.takes_requests and circuit.due(now):
                self._later(self._probe(line))
        for line in [line for line in self._seen if line not in lines]:
            del self._seen[line]
        supply.pump()

    def _late(self, now: float) -> float:
        """How long the loop has stood still since the last look: it is slow, or its process or machine was stopped."""
        return max(0.0, now - self._looked - self._patience.tick)

    def _watch(self, line: Line, now: float, before: float, late: float) -> None:
        """`before` was the last look; since then we stood still for `late` seconds."""
        patience = self._patience
        station = self._supply.router.station(line.name)
        gap = station.p99_gap_seconds
        limit = max(patience.quiet, min(20 * gap, patience.longest) if gap is not None else 0.0)
        seen = self._seen.get(line)
        if seen is None:
            # A line that had nothing to do has been silent for no reason: the wait begins with its first request.
            seen = self._seen[line] = _Seen(min(call.started for call in line.calls))
        # One whose client does not read is held by us: its silence says nothing of the line.
        waited = {call: choice for call, choice in line.calls.items() if not choice.paused}
        last = max((call.last for call in (*waited, *seen.calls)), default=now)
        seen.moved = max(min(now, seen.moved + late), last)
        earlier, seen.calls = seen.calls, {}
        for call in waited:
            known = earlier.get(call)
            if known is None or known[0] != call.last:
                known = call.last, self._stood - (late if call.last <= before + patience.tick else 0.0)
            seen.calls[call] = known
        if now - seen.told > PROGRESS_SECONDS:
            seen.told = now
            for call, choice in line.calls.items():
                choice.segments[-1].placement.progress(call.tokens)
        if now - seen.moved > limit:
            if not seen.asking:
                seen.asking = True
                self._later(self._ask(line, seen))
            return
        for call, choice in waited.items():
            silence = now - call.last - (self._stood - seen.calls[call][1])
            if call.tokens:
                if silence > patience.stream * limit and self._supply.elsewhere(choice, line):
                    self._break(line, call, silence)
            elif silence > self._first(choice) + self._unseen(line) and self._supply.elsewhere(choice, line):
                self._break(line, call, silence)

    def _first(self, choice: Choice) -> float:
        """How long its first token may take; what was predicted counts, but not without bound: a hang spoils it. Four
        times as long where another line was silent over it, too: then it is the request that takes so long."""
        first = self._patience.first
        least = first + min(5 * choice.segments[-1].placement.ttft, 10 * first)
        silent = sum(segment.left == "stalled" for segment in choice.segments)
        return max(least, min(least * 4**silent, self._patience.blind))

    def _unseen(self, line: Line) -> float:
        """Seconds that the vectors under way may take of an engine which shows nothing before a whole share is there:
        its count, if it has one, stands still through honest work."""
        if line.vectors is None or line.vectors.counted:
            return 0.0
        return sum(len(choice.request.prompt) for choice in line.calls.values()) / self._patience.slowest

    def _break(self, line: Line, call: Call, silence: float) -> None:
        log.warning("a stream of line %s is silent for %.1f s while others are not: it moves", line.name, silence)
        call.give_up(LineBroken(f"no token for {silence:.1f} s", "stalled"))

    def _standing(self) -> float:
        """Seconds for which we have stood still so far."""
        return self._stood + self._late(time.monotonic())

    def _ours(self, stood: float, limit: float) -> bool:
        """Whether so much of a limit passed while we stood still, since it was `stood`, that its end says nothing."""
        return self._standing() - stood > limit / 4

    async def _ask(self, line: Line, seen: _Seen) -> None:
        """Nothing came from the line for long: is it busy, or dead?"""
        stood = self._standing()
        try:
            progress = await self._progress(line)
        except LineError as error:
            if line.calls and not self._ours(stood, self._patience.ask):  # else it is asked once more
                self._dead(line, f"no token for {time.monotonic() - seen.moved:.1f} s, and it does not answer: {error}")
            return
        finally:
            seen.asking = False
        now = time.monotonic()
        if progress is not None and progress != seen.progress:
            seen.progress, seen.moved = progress, now
            return
        thinks = progress is None and line.vectors is None  # or may do so; vectors take the time of their texts
        limit = self._patience.blind if thinks else self._patience.idle
        if now - seen.moved > limit + self._unseen(line) and line.calls:
            self._dead(line, f"it answers, but computed nothing for {now - seen.moved:.0f} s")

    async def _progress(self, line: Line) -> float | None:
        """The engine's own count of what it computed; None if it has none. Raises LineError if it does not answer."""
        path = line.driver.metrics_path or line.driver.health_path
        if path is None:
            return None
        status, body = await line.client.ask("GET", path, seconds=self._patience.ask)
        if status >= 500:
            raise LineBroken(f"it answers {status} to {path}")
        return line.driver.metrics(body).progress

    def _dead(self, line: Line, reason: str) -> None:
        log.warning("line %s counts as dead: %s", line.name, reason)
        self._seen.pop(line, None)
        calls = list(line.calls)
        self._supply.trip(line, reason)  # before its streams look for another line
        for call in calls:
            call.give_up(LineBroken(reason, "stalled"))

    async def _probe(self, line: Line) -> None:
        """Half-open: one greedy token decides."""
        circuit = self._supply.circuits.get(line.name)
        fault = await self._fault(line)
        if circuit is None or self._supply.circuits.get(line.name) is not circuit:
            return
        if fault is None:
            log.info("line %s answers again", line.name)
            self._supply.heal(line)
        else:
            circuit.open(time.monotonic(), fault)

    async def _fault(self, line: Line) -> str | None:
        """What is wrong with its answer to a test request."""
        while True:
            stood = self._standing()
            try:
                async with asyncio.timeout(self._patience.probe):
                    return await fault_of(line)
            except LineError as error:
                return str(error)
            except ValueError as error:
                return f"it cannot be asked: {error}"
            except TimeoutError:
                if not self._ours(stood, self._patience.probe):
                    return f"no answer within {self._patience.probe:g} s"

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def watching(supply: Supply, patience: Patience | None = None) -> AsyncIterator[None]:
    """Watches the lines of `supply` inside the block."""
    task = asyncio.create_task(Watch(supply, patience).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
