"""Keeps one replica of a line as it should be: started, verified, watched, started again, or quarantined.

Owns when a replica is lost and what follows. Must not know the fleet, the gateways or files but through its engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from twinline.lines.fleet import starting
from twinline.lines.fleet.diff import engine_fields
from twinline.lines.fleet.engine import Engine, NoRecord, Ports
from twinline.lines.fleet.failures import Failures
from twinline.lines.fleet.health import Watch, facts_of, unreachable, well
from twinline.lines.fleet.pace import Pace
from twinline.lines.line import Line, fault_of
from twinline.lines.protocol import LineError, LineRefused
from twinline.lines.roster import Entry
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

log = logging.getLogger(__name__)

PORT_TRIES = 3


class Lost(LineError):
    """The replica does not serve, or not any more; the message says why."""


class Unreachable(Lost):
    """Nobody answers at a line that somebody else runs: it is waited for, and that is no failure of the line."""


class Keeper:
    """One replica. `changed` is called after every change of what `entry` says."""

    def __init__(
        self,
        name: str,
        spec: LineSpec,
        directory: Path,
        *,
        pace: Pace,
        ports: Ports,
        changed: Callable[[Keeper], None],
        is_sole: Callable[[Keeper], bool],
        environ: Mapping[str, str],
    ) -> None:
        """`is_sole` tells if no other line takes requests for the model. Raises ValueError for lack of a secret."""
        self.name = name
        self.spec = spec
        self.restarts = 0
        self.since = time.time()
        self.engine: Engine | None = None
        self.failures = Failures(pace)
        self.held = False
        self._line = Line(name, spec)
        self._directory, self._pace, self._ports, self._changed = directory, pace, ports, changed
        self._is_sole, self._environ = is_sole, environ
        self._task: asyncio.Task[None] | None = None
        self._faults: list[str] = []
        self._fault_came = asyncio.Event()
        self._resumed = asyncio.Event()
        self._verdict: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    # What others see and do.

    @property
    def state(self) -> LineState:
        return self._line.life.state

    @property
    def reason(self) -> str:
        return self._line.life.reason

    @property
    def entry(self) -> Entry:
        """The replica as gateways see it."""
        return Entry(
            name=self.name,
            spec=self.spec,
            state=self.state,
            reason=self.reason,
            url=self._line.url,
            facts=self._line.facts,
            since=self.since,
            born=self._line.born,
        )

    def start(self) -> None:
        """Begins to keep it; nothing happens if it is kept already."""
        if self._task is None or self._task.done():
            self.held = False
            self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def verdict(self) -> str | None:
        """Waits until it served, or failed, for the first time since `start`; None, or why it failed."""
        return await asyncio.shield(self._verdict)

    def update(self, spec: LineSpec) -> None:
        """Takes what needs no new engine: price, weight, lacks, class."""
        self.spec = spec
        self._changed(self)

    def hold(self, reason: str) -> None:
        """Stopped, from the beginning on, until it is resumed."""
        self.held = True
        self._to(LineState.STOPPED, reason)

    def resume(self) -> None:
        """Forgets its failures, and tries again at once what waits in quarantine or was stopped by hand."""
        self.failures.forget()
        self._verdict = asyncio.get_running_loop().create_future()
        if self.state.takes_requests:
            self._verdict.set_result(None)
        if self.held:
            self.start()
        else:
            self._resumed.set()

    def fault(self, reason: str) -> None:
        """Somebody saw the line fail: it is tested at once."""
        self._faults.append(reason)
        self._fault_came.set()

    def adopt(self, old: Entry | None) -> bool:
        """Takes up the engine that an earlier control side left, if it is the one this spec asks for.

        A state that the earlier one had reached by verification is kept: gateways see no break. An engine of another
        spec under this name is not ours to adopt; False then.
        """
        if self.spec.url is not None:
            self._keep_state(old, self.spec.url)
            return True
        found = Engine.find(self._directory, self.name)
        if found is None or found.standing.spec_hash != starting.spec_hash(self.spec):
            return False
        self.engine = found
        self._line.at(f"http://127.0.0.1:{found.standing.port}")
        self._line.born = found.standing.born
        self._keep_state(old, self._line.url)
        return True

    def _keep_state(self, old: Entry | None, url: str | None) -> None:
        if old is not None and old.state.takes_requests and (old.url == url or self.spec.url) and _same(old, self):
            self._line.facts, self._line.born = old.facts, old.born
            self._line.life.state, self._line.life.reason = old.state, old.reason
            self.since = old.since

    async def retire(self, drained: Callable[[], Any] | None, reason: str, *, leave_running: bool = False) -> None:
        """Ends the keeping. With `drained` it finishes first what it has: `drained()` is awaited while it drains."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if leave_running:
            return
        if drained is not None and self.state in (LineState.SERVING, LineState.DEGRADED):
            self._to(LineState.DRAINING, reason)
            await drained()
        await self._end_engine(self._pace.grace, reason)

    # How it is kept.

    async def _keep(self) -> None:
        while True:
            try:
                await self._once()
            except Exception as error:  # ours: it must not end the keeping, nor leave somebody waiting for a verdict
                log.exception("line %s: its keeper stumbled", self.name)
                self._judge(f"the control side stumbled: {error!r}")
                await asyncio.sleep(self._pace.longest_delay)

    async def _once(self) -> None:
        """From wherever it stands to serving, and on until it is lost."""
        try:
            if not self.state.takes_requests:
                await self._bring_up()
            self._judge(None)
            self._faults.clear()
            self._fault_came.clear()
            await self._watch()
        except Unreachable as error:
            await self._end_engine(0, str(error))
            self._judge(str(error))
            await asyncio.sleep(self._pace.poll)
        except NoRecord as error:  # no failure of the line, which would put it into quarantine for long after
            self._to_stopped(str(error))
            self._judge(str(error))
            await self._wait(self._pace.longest_delay)
        except (LineError, ValueError) as error:
            await self._failed(str(error))

    async def _bring_up(self) -> None:
        """From nothing, or from an engine that was found, to serving. Raises LineError or ValueError."""
        if self.spec.url is not None:
            await self._reached(self.spec.url)
        if self.state is LineState.QUARANTINED:
            self._line.life.to(LineState.STOPPED, "it is tried again")
        if self.state is LineState.STOPPED:
            self._to(LineState.STARTING, "it is started again")
        if self.engine is not None:
            await starting.ready(self.engine, self._line, self._pace)
        elif self.spec.url is None:
            await self._start_engine()
        self._line.facts = await facts_of(self._line, self._pace.question)
        self._to(LineState.VERIFYING, "a test request is under way")
        fault = await self._test()
        if fault is not None:
            raise Lost(f"its test request failed: {fault}")
        self._to(LineState.SERVING, "its test request was answered")

    async def _reached(self, url: str) -> None:
        self._line.at(url)
        wrong = await well(self._line, self._pace.question) or await unreachable(self._line)
        if wrong is not None:
            raise Unreachable(wrong)
        self._line.born = time.time()

    async def _start_engine(self) -> None:
        """Starts the engine, on another port when the one it was given was taken meanwhile."""
        if (stray := Engine.find(self._directory, self.name)) is not None:
            await stray.stop(self._pace.grace)  # of an older spec, or it failed and we were killed before its end
        for left in reversed(range(PORT_TRIES)):
            port = self._ports.free()
            self.engine = starting.start(self.name, self.spec, self._directory, port, self._environ)
            self._line.at(f"http://127.0.0.1:{port}")
            self._line.born = self.engine.standing.born
            self._to(LineState.STARTING, f"its engine is starting as process {self.engine.pid}")
            try:
                return await starting.ready(self.engine, self._line, self._pace)
            except starting.NotReady as error:
                if not left or not error.port_taken:
                    raise
                await self.engine.stop(self._pace.hang_grace)

    async def _test(self) -> str | None:
        """What was wrong with one greedy token, or None. Raises Unreachable for a line at a url that is not there."""
        try:
            async with asyncio.timeout(self._pace.verify):
                return await fault_of(self._line)
        except LineError as error:
            if self.spec.url is not None and isinstance(error, LineRefused) and error.code == "line_unreachable":
                raise Unreachable(str(error)) from None
            return str(error) or type(error).__name__
        except ValueError as error:
            return f"it cannot be asked: {error}"
        except TimeoutError:
            return f"no answer within {self._pace.verify:g} s"

    async def _watch(self) -> None:
        """Until it is lost, which is raised."""
        ways = [asyncio.ensure_future(self._polled()), asyncio.ensure_future(self._faulted())]
        if self.engine is not None:
            ways.append(asyncio.ensure_future(self.engine.ended()))
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                raise Lost(str(way.result()))
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _polled(self) -> str:
        watch = Watch(self._line, self._pace)
        while True:
            await asyncio.sleep(self._pace.poll)
            lost = await watch.look()
            if lost is not None:
                if self.engine is None:
                    raise Unreachable(lost)
                return lost
            if watch.mute > 1 and self.state is LineState.SERVING:
                self._to(LineState.DEGRADED, f"{watch.mute} health checks went unanswered ({watch.why})")
            elif not watch.mute and self.state is LineState.DEGRADED and not self.failures.too_many:
                self._to(LineState.SERVING, "it answers again")

    async def _faulted(self) -> str:
        """Tests the line whenever a gateway saw it fail. A passed test clears it, unless faults come repeatedly."""
        while True:
            await self._fault_came.wait()
            self._fault_came.clear()
            faults, self._faults = self._faults, []
            if self.failures.just_now:
                continue
            wrong = await self._test()
            if wrong is not None:
                return f"a gateway saw it fail ({faults[0]}) and its test request failed: {wrong}"
            self.failures.add()
            if not self.failures.too_many:
                continue
            why = f"it passes its test but failed requests {self.failures.recent} times: {faults[0]}"
            if not self._is_sole(self):
                return why
            if self.state is LineState.SERVING:
                self._to(LineState.DEGRADED, f"{why}; no other line serves its model")

    # How it fails.

    def _judge(self, verdict: str | None) -> None:
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    async def _failed(self, reason: str) -> None:
        """Counts a failure, ends the engine, and waits as long as the failures before it call for."""
        self.failures.add()
        self._to_stopped(reason)
        self._judge(reason)
        await self._end_engine(self._pace.hang_grace, reason)
        self.restarts += 1
        if not self.failures.too_many:
            delay = self.failures.delay
            self._to(LineState.STARTING, f"it is started again after {delay:g} s: {reason}")
            await self._wait(delay)
            return
        times = f"{self.failures.recent} failures within {self._pace.window / 60:g} minutes"
        wait = self.failures.cool_down
        self._to(LineState.QUARANTINED, f"{times}, tried again after {wait:g} s or when resumed: {reason}")
        if not await self._wait(wait):
            self.failures.half_open()

    async def _wait(self, seconds: float) -> bool:
        """True if `resume` cut it short."""
        self._resumed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._resumed.wait()
                return True
        return False

    async def _end_engine(self, grace: float, reason: str) -> None:
        self._to_stopped(reason)
        if self.engine is not None:
            await self.engine.stop(grace)
            self.engine = None  # not before: who cancels us in between has to find it
        self._line.at(None)
        self._line.born = 0.0
        self._changed(self)

    def _to_stopped(self, reason: str) -> None:
        if self.state is not LineState.STOPPED:
            self._to(LineState.STOPPED, reason)

    def _to(self, state: LineState, reason: str) -> None:
        life = self._line.life
        if life.state is not state:
            life.to(state, reason)
            self.since = time.time()
        else:
            life.reason = reason
        self._changed(self)


def _same(old: Entry, keeper: Keeper) -> bool:
    return msgspec.to_builtins(engine_fields(old.spec)) == msgspec.to_builtins(engine_fields(keeper.spec))
