"""Starting the engine of a line: its command line from the driver, a free port, and the wait until it answers.

Owns that and the secrets' place: `${NAME}` is looked up here, on the way into the process, and nowhere else. Must not
know what follows a failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from twinline.lines.cards import hidden, shown
from twinline.lines.drivers import driver
from twinline.lines.drivers.launch import container_name
from twinline.lines.fleet.diff import engine_fields
from twinline.lines.fleet.engine import Engine, hash_of
from twinline.lines.fleet.health import well
from twinline.lines.fleet.kinds import substituted
from twinline.lines.fleet.pace import Pace
from twinline.lines.line import Line
from twinline.lines.protocol import LineError
from twinline.lines.spec import LineSpec

LEAST_SECONDS = 10.0  # for an engine that was adopted when its time to start was nearly over
_TAKEN = ("address already in use", "address in use", "eaddrinuse", "couldn't bind")


class NotReady(LineError):
    """The engine ended before it answered, or takes too long."""

    @property
    def port_taken(self) -> bool:
        """Whether somebody else took the port between our choice and the engine's start."""
        return any(word in str(self).lower() for word in _TAKEN)


def spec_hash(spec: LineSpec) -> str:
    """Equal for specs that one engine serves, and that show it the same cards, if any."""
    return hash_of(engine_fields(spec), *filter(None, [shown(spec)]))


def start(name: str, spec: LineSpec, directory: Path, port: int, environ: Mapping[str, str]) -> Engine:
    """Raises EngineFailed, or ValueError for a variable that is not set or a spec that its driver refuses."""
    full = resolved(spec, environ)
    command = driver(spec.engine).command(full, port)
    return Engine.start(
        directory,
        name,
        command.argv,
        {**shown(full), **command.env, **full.env},
        port=port,
        spec_hash=spec_hash(spec),
        clean_up=_clean_up(full, port),
        without=hidden(full),
    )


def resolved(spec: LineSpec, environ: Mapping[str, str]) -> LineSpec:
    """The spec with every `${NAME}` in its environment and options looked up. Raises ValueError for one not set."""
    env = {name: substituted(value, environ) for name, value in spec.env.items()}
    options = {n: substituted(value, environ) if isinstance(value, str) else value for n, value in spec.options.items()}
    return replace(spec, env=env, options=options)


def _clean_up(spec: LineSpec, port: int) -> tuple[str, ...]:
    """What ends the container itself: a runtime's client that is killed leaves it running."""
    if spec.container is None:
        return ()
    return (str(spec.options.get("container_runtime", "docker")), "rm", "--force", container_name(spec, port))


async def ready(engine: Engine, line: Line, pace: Pace) -> None:
    """Waits until the engine answers. Raises NotReady when it ends before, or takes longer than the spec allows."""
    patience = line.spec.start_seconds
    left = max(patience - (time.time() - engine.standing.born), LEAST_SECONDS if not engine.ours else 0.0)
    ended = asyncio.ensure_future(engine.ended())
    answers = asyncio.ensure_future(_answers(line, pace))
    try:
        await asyncio.wait((ended, answers), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise NotReady(f"{ended.result()} before it was ready")
        if not answers.done():
            words = engine.last_words()
            raise NotReady(f"it was not ready within {patience:g} s" + (f" ({words})" if words else ""))
        answers.result()
    finally:
        for task in (ended, answers):
            task.cancel()
        await asyncio.gather(ended, answers, return_exceptions=True)


async def _answers(line: Line, pace: Pace) -> None:
    while await well(line, pace.question) is not None:
        await asyncio.sleep(pace.ready_poll)
