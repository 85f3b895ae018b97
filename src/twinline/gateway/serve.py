"""One model behind one door on this machine: start its line, open the gateway, end both cleanly.

Owns the order of starting and stopping. Must not know endpoints, signals or the line protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from twinline.gateway.app import create_app
from twinline.gateway.listening import Server, Stopping, bound, url_of
from twinline.gateway.served import ModelText
from twinline.lines.native import START_SECONDS, NativeLine

STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What to serve and where; port 0 is a free one. `label` and `description` mark a demonstration model."""

    model_dir: Path
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    aliases: Sequence[str] = ()
    label: str | None = None
    description: str | None = None
    start_seconds: float = START_SECONDS


def run(
    model_dir: Path,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    worker_options: Sequence[str] = (),
    *,
    aliases: Sequence[str] = (),
    label: str | None = None,
    description: str | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serves until SIGINT or SIGTERM. `ready` gets the base URL once requests are answered.

    Raises ValueError for a folder that cannot be served, OSError for an address that cannot be bound, and LineError
    when the line does not start.
    """
    what = Serving(Path(model_dir), name, host, port, aliases, label, description)
    uvloop.run(serve(what, NativeLine(what.model_dir, name, worker_options), ready))


async def serve(what: Serving, line: NativeLine, ready: Callable[[str], None]) -> None:
    """`run` with a line of the caller's making; needs the main thread, for its signals."""
    stopping = Stopping()
    with contextlib.closing(bound(what.host, what.port)) as listener, stopping.on_signals():
        text = await asyncio.to_thread(ModelText.load, what.model_dir)
        try:
            if not await stopping.unless_asked(line.start(what.start_seconds)):
                return
            served = text.served(
                what.name,
                line,
                max_model_len=int(line.facts["max_model_len"]),
                vocab_size=line.facts.get("vocab_size"),
                aliases=what.aliases,
                label=what.label,
                description=what.description,
            )
            await stopping.serve(Server(create_app([served]), lambda: ready(url_of(listener))), listener)
        finally:
            await line.stop(STOP_SECONDS)
