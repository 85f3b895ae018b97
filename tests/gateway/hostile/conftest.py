"""A gateway before two lines of one model: one hostile, one that answers as it should, where a test wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from tests.gateway.harness import MAX_BODY, MODEL, SPEC
from tests.gateway.hostile.hostile_line import HostileLine, bytes_of
from tests.lines.line_double import LineDouble, Script

from twinline.gateway.access import Access
from twinline.gateway.app import App
from twinline.gateway.crowd import Crowd
from twinline.gateway.door import Door
from twinline.gateway.listening import Server, bound, url_of
from twinline.gateway.meters import Meters, ModelMeter
from twinline.gateway.routing import Policy
from twinline.gateway.served import ModelText, ServedModel
from twinline.gateway.supply import Bounds, Supply
from twinline.gateway.watch import Patience, watching
from twinline.lines.line import Line
from twinline.lines.state import LineState

SPEC_LONG = replace(SPEC, context=1_000_000)
ADMIN = "the-management-key"
PATIENCE = Patience(tick=0.05, quiet=0.5, longest=0.6, stream=2.0, first=0.5, ask=2.0, idle=1.0, probe=0.3)


@dataclass
class Attacked:
    """The running three. `good` is out of service unless a test takes it in."""

    url: str
    door: Door
    supply: Supply
    hostile: HostileLine
    double: LineDouble
    lines: dict[str, Line]
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    server: Server

    @property
    def crowd(self) -> Crowd:
        crowd: Crowd = self.server.config.http.keywords["crowd"]  # type: ignore[union-attr]
        return crowd

    @property
    def connections(self) -> set[Any]:
        return self.server.server_state.connections

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def call(self, what: Callable[[], Any]) -> None:
        """Runs something in the gateway's loop."""

        async def work() -> None:
            what()

        self.do(work())

    def good(self, serves: bool) -> None:
        state = LineState.SERVING if serves else LineState.DRAINING
        self.call(lambda: self.lines["good"].life.told(state, "the test says so"))

    def complete(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields})


@pytest.fixture(scope="module")
def running(tiny_folder: Path) -> Iterator[Attacked]:
    ready = threading.Event()
    made: list[Attacked] = []
    servers: list[Server] = []

    async def main() -> None:
        hostile, double = HostileLine(), LineDouble()
        lines = {
            "hostile": Line("hostile", SPEC_LONG, await hostile.start()),
            "good": Line("good", SPEC_LONG, await double.start()),
        }
        meters = Meters()
        supply = Supply(MODEL, Policy("prefer", order=("hostile", "good")), ModelMeter(meters, MODEL), Bounds())
        for line in lines.values():
            line.life.state = LineState.SERVING
            supply.add(line)
        door = Door([ServedModel(MODEL, ModelText.load(tiny_folder), supply)], Access(admin=ADMIN), meters, MAX_BODY)
        with bound("127.0.0.1", 0) as listener:
            url = url_of(listener)
            client = httpx.Client(base_url=url, timeout=20, trust_env=False)
            servers.append(Server(App(door), ready.set))
            loop = asyncio.get_running_loop()
            made.append(Attacked(url, door, supply, hostile, double, lines, loop, client, servers[0]))
            async with watching(supply, PATIENCE):
                await servers[0].serve([listener])
        await hostile.stop()
        await double.stop()

    thread = threading.Thread(target=uvloop.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield made[0]
    finally:
        made[0].client.close()
        servers[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def attacked(running: Attacked) -> Attacked:
    """As if nothing had happened before; the hostile line alone serves."""
    running.hostile.answer = bytes_of()
    running.hostile.told = {}
    running.double.script = lambda request: Script()

    def forget() -> None:
        for line in running.lines.values():
            running.supply.restarted(line)

    running.call(forget)
    running.good(False)
    return running
