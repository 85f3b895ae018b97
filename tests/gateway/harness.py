"""A gateway on loopback before a line's double, in a thread of its own, for tests that are ordinary clients."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop
from tests.lines.line_double import LineDouble, Script

from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.gateway.listening import Server, bound, url_of
from twinline.gateway.meters import Meters, ModelMeter
from twinline.gateway.routing import Policy
from twinline.gateway.served import ModelText, ServedModel
from twinline.gateway.supply import Bounds, Supply
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.watch import watching
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec

MODEL = "tiny-r1"
MAX_MODEL_LEN = 256
MAX_BODY = 1 << 20
SPEC = LineSpec(name="double", model=MODEL, upstream="m", engine="native", weights="nowhere", context=MAX_MODEL_LEN)


@dataclass
class Gateway:
    """The running pair. `double` may be scripted from the test's thread."""

    url: str
    supply: Supply
    double: LineDouble
    line: Line
    tokenizer: Tokenizer
    loop: asyncio.AbstractEventLoop
    client: httpx.Client

    def says(self, text: str, **script: Any) -> list[int]:
        """Every request is answered with `text` and the end token; the token ids."""
        tokens = [*self.tokenizer.encode(text, special=False), *self.tokenizer.eos_ids]
        self.double.script = lambda request: Script(tokens=tokens, **script)
        return tokens

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields})

    def connected(self) -> socket.socket:
        """For bytes as a client might write them; each piece is sent at once."""
        host, port = self.url.removeprefix("http://").split(":")
        wire = socket.create_connection((host, int(port)), timeout=10)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return wire

    def asked(self) -> dict[str, Any]:
        """What the line was asked last."""
        return self.double.requests[-1]

    def until(self, what: Callable[[], bool]) -> None:
        limit = time.monotonic() + 60
        while not what():
            assert time.monotonic() < limit
            time.sleep(0.005)

    def renew(self) -> None:
        """What the gateway held against the line is forgotten."""

        async def forget() -> None:
            self.supply.restarted(self.line)

        self.do(forget())

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something in the gateway's loop."""
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)


def served(name: str, text: ModelText, lines: Iterable[Line], meters: Meters) -> ServedModel:
    supply = Supply(name, Policy("fastest"), ModelMeter(meters, name), Bounds(queue_seconds=0.5))
    for line in lines:
        supply.add(line)
    return ServedModel(name, text, supply, "demonstration")


@contextmanager
def gateway(folder: Path, spec: LineSpec = SPEC) -> Iterator[Gateway]:
    ready = threading.Event()
    made: list[Gateway] = []
    servers: list[Server] = []

    async def main() -> None:
        double = LineDouble()
        line = Line("double", spec, await double.start())
        await line.verify()
        text = ModelText.load(folder)
        meters = Meters()
        model = served(MODEL, text, [line], meters)
        door = Door([model], meters=meters, max_body_bytes=MAX_BODY)
        with bound("127.0.0.1", 0) as listener:
            url = url_of(listener)
            client = httpx.Client(base_url=url, timeout=20, trust_env=False)
            made.append(Gateway(url, model.supply, double, line, text.tokenizer, asyncio.get_running_loop(), client))
            servers.append(Server(App(door), ready.set))
            async with watching(model.supply):
                await servers[0].serve([listener])
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
