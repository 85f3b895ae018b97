"""The gateway that is tested: real, over lines that are given by URL, in this event loop or in a process of its own.

    python -m tests.gateway.exactness.under_test FOLDER STALL_SECONDS MOVES URL...

The one file here that knows how a gateway is made.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from twinline.gateway.app import App
from twinline.gateway.choice import MOVES
from twinline.gateway.door import Door
from twinline.gateway.listening import Server, bound, url_of
from twinline.gateway.meters import Meters, ModelMeter
from twinline.gateway.routing import Policy
from twinline.gateway.served import ModelText, ServedModel
from twinline.gateway.supply import Bounds, Supply
from twinline.gateway.watch import Patience, watching
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec

MODEL = "taught"


@asynccontextmanager
async def make_gateway(
    lines: Sequence[str], folder: Path, stall_seconds: float | None = None, moves: int = MOVES
) -> AsyncIterator[str]:
    """Its URL. A stream that is silent for about `stall_seconds` counts as broken; it may break `moves` times."""
    meters = Meters()
    supply = Supply(MODEL, Policy("fastest"), ModelMeter(meters, MODEL), Bounds(moves=moves))
    for number, url in enumerate(lines, 1):
        spec = LineSpec(name=f"line{number}", model=MODEL, engine="native", url=url)
        line = Line(spec.name, spec)
        line.facts = {"max_model_len": 2048}
        await line.verify()
        supply.add(line)
    door = Door([ServedModel(MODEL, ModelText.load(folder), supply)], meters=meters)
    patience = Patience()
    if stall_seconds is not None:
        patience = Patience(
            tick=0.1,
            quiet=stall_seconds,
            longest=stall_seconds,
            stream=1.0,
            first=stall_seconds,
            blind=4 * stall_seconds,
        )
    ready = asyncio.Event()
    server = Server(App(door), ready.set)
    with bound("127.0.0.1", 0) as listener:
        async with watching(supply, patience):
            serving = asyncio.create_task(server.serve([listener]))
            await ready.wait()
            try:
                yield url_of(listener)
            finally:
                server.should_exit = server.force_exit = True
                await serving


@asynccontextmanager
async def spawned_gateway(lines: Sequence[str], folder: Path, stall_seconds: float, moves: int) -> AsyncIterator[str]:
    """The same in a process of its own."""
    argv = [sys.executable, "-m", "tests.gateway.exactness.under_test", str(folder), str(stall_seconds), str(moves)]
    process = await asyncio.create_subprocess_exec(*argv, *lines, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _main(folder: str, stall_seconds: str, moves: str, *lines: str) -> None:
    logging.basicConfig(level=logging.CRITICAL)  # faults are made by the thousand
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with make_gateway(lines, Path(folder), float(stall_seconds), int(moves)) as url:
        print(url, flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
