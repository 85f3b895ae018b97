"""The gateway processes of a fleet: started, watched, started again, asked.

Owns their processes and their Unix sockets. Must not know routing, nor what module a gateway is: its command line is
given. They read the roster themselves and go on when the control side is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from twinline.lines.client import LineClient
from twinline.lines.fleet.engine import Engine, EngineFailed, hash_of
from twinline.lines.fleet.home import gateway_socket
from twinline.lines.fleet.pace import Pace
from twinline.lines.protocol import LineError
from twinline.lines.roster import GatewaySpec

log = logging.getLogger(__name__)


class Said(msgspec.Struct, frozen=True):
    """The answer to `/api/lines`. `generation` is the roster's that the gateway works by."""

    lines: list[dict[str, Any]]
    generation: int | None = None


async def said_by(directory: Path, index: int, seconds: float) -> Said:
    """What gateway `index` says of its lines. Raises LineError when it does not answer."""
    client = LineClient(f"unix://{gateway_socket(directory, index)}")
    try:
        status, body = await client.ask("GET", "/api/lines", seconds=seconds)
    finally:
        client.close()
    if status != 200:
        raise EngineFailed(f"/api/lines answers {status}")
    try:
        return msgspec.json.decode(body, type=Said)
    except msgspec.DecodeError as error:
        raise EngineFailed(f"/api/lines: {error}") from error


class Gateway:
    """One gateway process, kept alive. `argv` is the command line up to the index."""

    def __init__(
        self,
        index: int,
        argv: Sequence[str],
        spec: GatewaySpec,
        directory: Path,
        pace: Pace,
        changed: Callable[[Gateway], None],
    ) -> None:
        self.index = index
        self.name = f"gateway-{index}"
        self.state = "starting"
        self.reason = "it was just created"
        self.since = time.time()
        self.restarts = 0
        self.engine: Engine | None = None
        self.spec = spec
        self._argv = [*argv, "--run", str(directory), "--index", str(index)]
        self._directory, self._pace, self._changed = directory, pace, changed
        self._hash = hash_of(msgspec.to_builtins(spec), list(argv))
        self._task: asyncio.Task[None] | None = None
        self._verdict: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def adopt(self) -> bool:
        """Takes up the process that an earlier control side left, if it was started for the same spec."""
        found = Engine.find(self._directory, self.name)
        if found is None or found.standing.spec_hash != self._hash:
            return False
        self.engine = found
        return True

    async def verdict(self) -> str | None:
        """Waits until it answered or failed for the first time; None, or why it failed."""
        return await asyncio.shield(self._verdict)

    async def retire(self, *, leave_running: bool = False, patience: float = 0) -> None:
        """`patience`: how many seconds it may finish what it has, where its siblings take what comes meanwhile."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if not leave_running:
            if self.engine is not None:
                if patience:
                    await self._leaves(self.engine, patience)
                await self.engine.stop(self._pace.grace)
                self.engine = None
            gateway_socket(self._directory, self.index).unlink(missing_ok=True)
            self._to("stopped", "it was asked to")

    async def _leaves(self, engine: Engine, patience: float) -> None:
        async with self._watched(engine) as (ended, client):
            with contextlib.suppress(LineError):
                status, _ = await client.ask("POST", "/api/leave", seconds=self._pace.question)
                if status != 200:  # of an earlier version
                    return
                self._to("draining", "it finishes what it has")
                await asyncio.wait((ended,), timeout=patience)

    async def _keep(self) -> None:
        tries = 0
        while True:
            began = time.monotonic()
            try:
                if self.engine is None:
                    await self._started()
                assert self.engine is not None
                await self._answers(self.engine)
                self._to("serving", "it answers")
                self._judge(None)
                reason = await self._lost(self.engine)
            except LineError as error:
                reason = str(error)
            except Exception as error:  # ours: it must not end the keeping, nor leave somebody waiting for a verdict
                log.exception("%s: its keeping stumbled", self.name)
                reason = f"the control side stumbled: {error!r}"
            self._to("stopped", reason)
            self._judge(reason)
            if self.engine is not None:
                await self.engine.stop(self._pace.hang_grace)
                self.engine = None
            tries = 0 if time.monotonic() - began > self._pace.window else tries + 1
            delay = min(self._pace.first_delay * 2 ** (tries - 1), self._pace.longest_delay)
            self.restarts += 1
            await asyncio.sleep(delay)

    async def _started(self) -> None:
        stray = Engine.find(self._directory, self.name)
        if stray is not None:
            await stray.stop(self._pace.grace)
        gateway_socket(self._directory, self.index).unlink(missing_ok=True)
        self.engine = Engine.start(
            self._directory, self.name, self._argv, {}, port=self.spec.port, spec_hash=self._hash, ours=True
        )
        self._to("starting", f"process {self.engine.pid} is starting")

    async def _answers(self, engine: Engine) -> None:
        """Waits for its health. Raises EngineFailed when it ends before, or takes too long."""
        end = time.monotonic() + self._pace.gateway_ready
        async with self._watched(engine) as (ended, client):
            while time.monotonic() < end:
                with contextlib.suppress(LineError):
                    status, _ = await client.ask("GET", "/health", seconds=self._pace.question)
                    if status in (200, 503):  # 503: it is there, and no line is up yet
                        return
                await asyncio.wait((ended,), timeout=self._pace.ready_poll)
                if ended.done():
                    raise EngineFailed(f"{ended.result()} before it was ready")
            raise EngineFailed(f"it did not answer within {self._pace.gateway_ready:g} s")

    async def _lost(self, engine: Engine) -> str:
        """Waits until it ended, or hangs: why it is lost. Its port goes on taking connections that nobody answers."""
        mute = 0
        async with self._watched(engine) as (ended, client):
            while True:
                await asyncio.wait((ended,), timeout=self._pace.poll)
                if ended.done():
                    return ended.result()
                wrong = await self._mute(client)
                if wrong is None:
                    if self.state == "degraded":
                        self._to("serving", "it answers again")
                    mute = 0
                    continue
                mute += 1
                if mute >= self._pace.gateway_mute_polls:
                    return f"it left {mute} health checks unanswered ({wrong})"
                if mute > 1 and not ended.done():
                    self._to("degraded", f"{mute} health checks went unanswered ({wrong})")

    @contextlib.asynccontextmanager
    async def _watched(self, engine: Engine) -> AsyncIterator[tuple[asyncio.Future[str], LineClient]]:
        ended = asyncio.ensure_future(engine.ended())
        client = LineClient(f"unix://{gateway_socket(self._directory, self.index)}")
        try:
            yield ended, client
        finally:
            client.close()
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _mute(self, client: LineClient) -> str | None:
        """None if it answers, whatever; else why not. One that answers ill may still serve: it is left alone."""
        try:
            await client.ask("GET", "/health", seconds=self._pace.question)
        except LineError as error:
            return str(error)
        return None

    def _judge(self, verdict: str | None) -> None:
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    def _to(self, state: str, reason: str) -> None:
        self.state, self.reason, self.since = state, reason, time.time()
        log.info("%s: %s: %s", self.name, state, reason)
        self._changed(self)
