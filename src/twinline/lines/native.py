"""The native engine as a line: its worker's command line, its start, its end.

Owns how the worker is asked to start. Must not import the engine: the worker is another process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from twinline.facts.pooling import MODULES
from twinline.lines.drivers.native import HUGE_PAGES
from twinline.lines.line import Line
from twinline.lines.process import LineStartFailed, WorkerProcess
from twinline.lines.spec import PRECISION, LineSpec, weights_class
from twinline.lines.state import LineState

START_SECONDS = 600.0


class NativeLine(Line):
    """A worker of our engine on this machine. `options` are further arguments of the worker.

    `facts` is what the worker said when it was ready: `max_model_len`, `vocab_size`, ...
    """

    def __init__(
        self,
        model_dir: Path,
        name: str,
        options: Sequence[str] = (),
        *,
        env: dict[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "twinline.engine.worker"),
    ) -> None:
        super().__init__(f"native:{name}", _spec(model_dir, name, options))
        where = ["--model", str(model_dir), "--name", name, "--host", "127.0.0.1", "--port", "0", "--watch-stdin"]
        self._process = WorkerProcess(self.name, [*program, *where, *options], HUGE_PAGES | (env or {}))
        self._guard: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._process.alive

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def begin(self) -> None:
        """Starts the worker ahead of `start`, which then waits for it: for who has something to do meanwhile. Raises
        LineStartFailed."""
        await self._process.spawn()

    async def start(self, timeout: float = START_SECONDS) -> None:
        """Starts the worker, waits until it is ready and verifies it.

        Raises LineStartFailed or VerificationFailed; the worker is stopped then.
        """
        if self.state is LineState.STOPPED:
            self.life.to(LineState.STARTING, "it is started again")
        try:
            self.facts = await self._process.start(timeout)
            self.at(f"http://127.0.0.1:{self.facts['port']}")
            self.born = time.time()
            self._guard = asyncio.create_task(self._watch())
            await self.verify()
        except BaseException as error:
            await self.stop(grace=1.0, reason=f"it did not start: {error}")
            raise

    async def ended(self) -> str:
        """Waits until the process of a started line has ended by itself; how it did."""
        assert self._guard is not None
        await asyncio.wait((self._guard,))
        return self.life.reason

    async def _watch(self) -> None:
        """Takes the line out of service the moment its process ends."""
        code = await self._process.wait()
        if self.state is not LineState.STOPPED:
            words = self._process.last_words().rsplit("\n", 1)[-1]
            self.life.to(LineState.STOPPED, f"its process ended with code {code}" + (f" ({words})" if words else ""))

    async def stop(self, grace: float = 10.0, reason: str = "it was asked to") -> None:
        """Ends the worker: SIGTERM, then SIGKILL after `grace` seconds."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        if self.state is not LineState.STOPPED:
            self.life.to(LineState.STOPPED, reason)
        self.at(None)
        await self._process.stop(grace)


def _spec(model_dir: Path, name: str, options: Sequence[str]) -> LineSpec:
    """With what a fleet's line of this folder and precision has: its weights class, whether it gives vectors."""
    said = {}
    for option in PRECISION:
        flag = "--" + option.replace("_", "-")
        if flag in options:
            said[option] = options[options.index(flag) + 1]
    folder = str(model_dir.resolve())
    classed = weights_class(LineSpec(name=name, model=name, engine="native", weights=folder, options=said))
    embeds = (model_dir / MODULES).is_file()
    return LineSpec(
        name=name, model=name, engine="native", weights=str(model_dir), embeds=embeds, weights_class=classed
    )


__all__ = ["LineStartFailed", "NativeLine"]
