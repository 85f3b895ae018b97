"""The two lines, the gateway before them, and the roster between.

Owns their processes. Must not know what is asked of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill.lines import FOLDER, MODEL, Worker, free_port

from twinline.lines import roster
from twinline.lines.http import Target
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState


@dataclass
class Fleet:
    """The two lines, the gateway process, and the roster between them."""

    directory: Path
    workers: list[Worker]
    port: int
    process: asyncio.subprocess.Process | None = None
    generation: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self) -> None:
        """Tells the gateway which engines are there, as the control side would."""
        self.generation += 1
        spec = roster.GatewaySpec(port=self.port)
        entries = tuple(
            roster.Entry(
                name=worker.name,
                spec=LineSpec(name=worker.name, model=MODEL, engine="native", weights=str(FOLDER)),
                state=LineState.SERVING, reason="the benchmark says so", url=f"http://127.0.0.1:{worker.relay.port}",
                facts=worker.facts, born=worker.born,
            )
            for worker in self.workers
        )  # fmt: skip
        model = roster.ModelSpec(name=MODEL, text=str(FOLDER), policy="fastest")
        told = roster.Roster(fleet="kill", generation=self.generation, gateway=spec, models=(model,), entries=entries)
        roster.write(self.directory, told)

    async def start(self, verbose: bool) -> None:
        await asyncio.gather(*(worker.start() for worker in self.workers))
        self.write()
        argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(self.directory)]
        self.process = await asyncio.create_subprocess_exec(
            *argv, "--log-level", "warning" if verbose else "critical", stdout=subprocess.PIPE,
            env={**os.environ, "TWINLINE_HOME": str(self.directory / "home")},
        )  # fmt: skip
        assert self.process.stdout is not None
        await asyncio.wait_for(self.process.stdout.readline(), 60)

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 20)
            except TimeoutError:
                self.process.kill()
        await asyncio.gather(*(worker.end() for worker in self.workers))

    async def lines(self) -> dict[str, dict[str, str]]:
        """What the gateway says of its lines."""
        told = await fetch(self.url, "/health")
        found: dict[str, dict[str, str]] = told["models"][MODEL]["lines"]
        return found

    async def healed(self, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while any(line["state"] != "serving" for line in (await self.lines()).values()):
            if time.monotonic() > end:
                raise RuntimeError(f"a line did not come back within {seconds:g} s: {await self.lines()}")
            await asyncio.sleep(0.2)

    def metered(self) -> dict[str, int]:
        """Sums that `twinline usage` gives."""
        argv = [sys.executable, "-m", "twinline.cli", "usage", "--by", "total", "--json"]
        env = {**os.environ, "TWINLINE_HOME": str(self.directory / "home")}
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True, timeout=60)
        sums = json.loads(done.stdout)["totals"]  # one for each currency
        names = ("requests", "unfinished", "prompt_tokens", "completion_tokens", "waste_tokens")
        return {name: sum(row[name] for row in sums) for name in names}


async def fetch(url: str, path: str) -> Any:
    target = Target.parse(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        data = await asyncio.wait_for(reader.read(-1), 20)
    finally:
        writer.close()
    return json.loads(data.partition(b"\r\n\r\n")[2])


@contextlib.asynccontextmanager
async def fleet(given: argparse.Namespace) -> AsyncIterator[Fleet]:
    with tempfile.TemporaryDirectory() as made:
        workers = [Worker(n, device, given.slots, given.waiting) for n, device in zip("ab", given.devices)]
        run = Fleet(Path(made), workers, free_port())
        try:
            await run.start(given.verbose)
            yield run
        finally:
            await run.end()
