"""One model behind one door on this machine: start its line, open the gateway, end both cleanly.

Owns the order of starting and stopping. Must not know endpoints, signals or the line protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twinline.gateway import tracing
from twinline.gateway.access import Access
from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.gateway.listening import Server, Stopping, bound, url_of
from twinline.gateway.meters import Meters, ModelMeter
from twinline.gateway.opened import opened
from twinline.gateway.routing import Policy
from twinline.gateway.served import ModelText, ServedModel
from twinline.gateway.supply import Supply
from twinline.gateway.watch import watching
from twinline.lines.keeper import keep_alive
from twinline.lines.native import START_SECONDS, NativeLine

STOP_SECONDS = 4.0  # with the drain, inside the ten seconds that container runtimes give


@dataclass(frozen=True, slots=True)
class Serving:
    """What to serve and where; port 0 is a free one. `label` marks a demonstration model. `keys`: a key of the store is
    needed (`twinline keys`), as it must be wherever others can reach the address."""

    model_dir: Path
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    label: str | None = None
    keys: bool = False
    start_seconds: float = START_SECONDS


async def serve(what: Serving, line: NativeLine, ready: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; needs the main thread, for its signals. The line may have begun to start.

    `ready` gets the base URL once requests are answered. A line that dies is started again. Raises ValueError for a
    folder that cannot be served, OSError for an address that cannot be bound, and LineError when the line does not
    start, at first or ever again.
    """
    stopping = Stopping()
    async with contextlib.AsyncExitStack() as stack:
        try:
            listener = stack.enter_context(contextlib.closing(bound(what.host, what.port)))
            stack.enter_context(stopping.on_signals())
            text = await asyncio.to_thread(ModelText.load, what.model_dir)
            access = Access()

            async def begin() -> None:
                nonlocal access
                if what.keys:
                    access = await stack.enter_async_context(opened(keys=True, fold=True))
                await line.start(what.start_seconds)

            if not await stopping.unless_asked(begin()):
                return
            meters = Meters()
            supply = Supply(what.name, Policy("fastest"), ModelMeter(meters, what.name))
            supply.add(line)
            door = Door([ServedModel(what.name, text, supply, what.label)], access, meters)
            traces = tracing.set_up(0)
            if traces is not None:
                door.access.observers.append(traces.observer)
            server = Server(App(door), lambda: ready(url_of(listener)))
            keeping = asyncio.create_task(keep_alive(line, what.start_seconds))
            keeping.add_done_callback(lambda _: stopping.ask())
            try:
                async with watching(supply):
                    await stopping.serve(server, listener)
            finally:
                keeping.cancel()
                await asyncio.wait((keeping,))
                if traces is not None:
                    await asyncio.to_thread(traces.close)
            if not keeping.cancelled():
                keeping.result()  # raises why it gave up
        finally:
            await line.stop(STOP_SECONDS)
