"""Fleets of doubles for tests: a driver that starts them, a controller at a quick pace, and what surely ends them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from twinline.lines.drivers.driver import Command
from twinline.lines.drivers.native import Native
from twinline.lines.fleet import home
from twinline.lines.fleet.controller import Controller, end_processes
from twinline.lines.fleet.file import Fleet, embedded
from twinline.lines.fleet.identity import started
from twinline.lines.fleet.pace import Pace
from twinline.lines.roster import GatewaySpec, ModelSpec
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

HERE = Path(__file__).parent
GATEWAY = (sys.executable, str(HERE / "gateway_double.py"))
PACE = Pace(
    poll=0.1, question=5, stalled=0.4, ready_poll=0.02, verify=30, first_delay=0.05, longest_delay=0.1, window=60,
    same_failure=0.2, cool_down=60, grace=0.5, hang_grace=0.2, gateway_ready=60, drain_look=0.02,
)  # fmt: skip


class Double(Native):
    """`engine: double` in a test's fleet."""

    engine: ClassVar[str] = "double"

    def check(self, spec: LineSpec) -> None:
        pass

    def command(self, spec: LineSpec, port: int) -> Command:
        return Command([sys.executable, str(HERE / "engine_double.py"), "--port", str(port)], {})


class Remote(Double):
    """`engine: remote`: only a request can tell whether it is well."""

    engine: ClassVar[str] = "remote"
    health_path: ClassVar[str | None] = None
    metrics_path: ClassVar[str | None] = None


MODEL = ModelSpec(name="m", text=str(embedded()))


def line(name: str = "a", **fields: Any) -> LineSpec:
    return replace(LineSpec(name=name, model="m", engine="double"), **fields)


def fleet(*lines: LineSpec, surge: frozenset[str] = frozenset(), **fields: Any) -> Fleet:
    gateway = fields.pop("gateway", GatewaySpec(port=1))
    return Fleet(
        name="f", models=(MODEL,), lines=lines, gateway=gateway, surge=surge, **{"drain_seconds": 5.0} | fields
    )


@asynccontextmanager
async def controlled(wanted: Fleet, pace: Pace = PACE, gateway: tuple[str, ...] = GATEWAY) -> AsyncIterator[Controller]:
    """A controller that has begun; everything is ended when the block is left."""
    directory = home.run_directory("f")
    home.prepare(directory)
    controller = Controller(directory, gateway, pace=pace)
    async with asyncio.timeout(150):
        try:
            controller.failures = await controller.begin(wanted)  # type: ignore[attr-defined]
            yield controller
        finally:
            await controller.end(leave_running=False)
            await end_processes(directory, 0.2)


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


def pid_of(controller: Controller, name: str = "a") -> int:
    engine = controller.keepers[name].engine
    assert engine is not None
    return engine.pid


def serves(controller: Controller, name: str = "a") -> bool:
    return name in controller.keepers and controller.keepers[name].state is LineState.SERVING


def lives(pid: int) -> bool:
    """A zombie, which `os.kill` still finds, does not."""
    return started(pid) is not None


def environment() -> dict[str, str]:
    """For a process of the test: its home is the test's."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
