"""A gateway on loopback before several lines' doubles, all in one event loop: a test is a coroutine that asks it.

Owns the set-up. Must not know what any test asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvloop
from tests.lines.line_double import LineDouble, Script

from twinline.gateway.access import Access
from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.gateway.listening import Server, bound, url_of
from twinline.gateway.meters import Meters, ModelMeter
from twinline.gateway.routing import Policy
from twinline.gateway.served import ModelText, ServedModel
from twinline.gateway.supply import Bounds, Supply
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.watch import Patience, watching
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

MODEL = "tiny-r1"
PATIENCE = Patience(tick=0.02, quiet=0.3, longest=0.5, first=1.0, ask=2.0)


@dataclass
class Several:
    """The running gateway. `doubles` may be scripted and stopped."""

    url: str
    supply: Supply
    doubles: dict[str, LineDouble]
    tokenizer: Tokenizer
    client: httpx.AsyncClient
    _urls: dict[str, str] = field(default_factory=dict)

    def line(self, name: str) -> Line:
        return self.supply.lines[name]

    def tokens(self, text: str, end: bool = True) -> list[int]:
        return self.tokenizer.encode(text, special=False) + (sorted(self.tokenizer.eos_ids)[:1] if end else [])

    def says(self, text: str, *names: str, **script: Any) -> list[int]:
        """These lines (all) answer every request with `text` and the end token; the token ids."""
        tokens = self.tokens(text)
        for name in names or tuple(self.doubles):
            self.doubles[name].script = lambda request: Script(tokens=tokens, **script)
        return tokens

    async def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def complete(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post(
            "/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields}, headers=headers
        )

    def asked(self, name: str) -> list[dict[str, Any]]:
        """What a line was asked by clients."""
        return [each for each in self.doubles[name].requests if not each["request_id"].startswith("verify")]

    def to(self, name: str, state: LineState, reason: str = "the test says so") -> None:
        self.line(name).life.told(state, reason)

    async def given(self, count: int, *names: str) -> None:
        """Until `count` streams are under way on these lines and each has some of its tokens."""
        await self.until(
            lambda: (
                len(calls := [call for name in names for call in self.line(name).calls]) == count
                and all(call.tokens for call in calls)
            )
        )

    async def until(self, what: Callable[[], object], seconds: float = 60.0) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not what():
            assert asyncio.get_running_loop().time() < end, "waited in vain"
            await asyncio.sleep(0.005)


def events(response: httpx.Response) -> list[Any]:
    """Every event of a stream, `[DONE]` as it is."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    found = [block.partition("data: ")[2] for block in response.text.split("\n\n") if not block.startswith(":")]
    assert found.pop() == ""
    return [each if each == "[DONE]" else json.loads(each) for each in found]


@contextlib.asynccontextmanager
async def several(
    folder: Path,
    lines: Sequence[str | LineSpec],
    *,
    bounds: Bounds | None = None,
    access: Access | None = None,
    policy: Policy | None = None,
    patience: Patience = PATIENCE,
    urls: dict[str, str] | None = None,
) -> AsyncIterator[Several]:
    """`lines` are names, or specs that differ from the plain native line. One in `urls` is somebody else's server."""
    meters = Meters()
    supply = Supply(
        MODEL, policy or Policy("prefer", order=tuple(names_of(lines))), ModelMeter(meters, MODEL), bounds or Bounds()
    )
    doubles: dict[str, LineDouble] = {}
    text = ModelText.load(folder)
    for each in lines:
        spec = plain(each) if isinstance(each, str) else each
        if urls and spec.name in urls:
            line = Line(spec.name, spec, urls[spec.name])
            line.life.told(LineState.SERVING, "the test says so")
        else:
            double = doubles[spec.name] = LineDouble()
            line = Line(spec.name, spec, await double.start())
            await line.verify()
        supply.add(line)
    door = Door([ServedModel(MODEL, text, supply)], access=access, meters=meters)
    ready = asyncio.Event()
    server = Server(App(door), ready.set)
    with bound("127.0.0.1", 0) as listener:
        async with watching(supply, patience):
            serving = asyncio.create_task(server.serve([listener]))
            await ready.wait()
            url = url_of(listener)
            try:
                async with httpx.AsyncClient(base_url=url, timeout=90, trust_env=False) as client:
                    yield Several(url, supply, doubles, text.tokenizer, client)
            finally:
                server.should_exit = server.force_exit = True
                await serving
                for double in doubles.values():
                    await double.stop()


def names_of(lines: Sequence[str | LineSpec]) -> list[str]:
    return [each if isinstance(each, str) else each.name for each in lines]


def plain(name: str, **fields: Any) -> LineSpec:
    told: dict[str, Any] = {"model": MODEL, "upstream": "m", "engine": "native", "weights": "nowhere", "context": 1024}
    return LineSpec(name=name, **(told | fields))


def run(folder: Path, lines: Sequence[str | LineSpec], test: Callable[[Several], Awaitable[None]], **how: Any) -> None:
    """Runs `test` against a gateway of its own."""

    async def main() -> None:
        async with asyncio.timeout(30):
            async with several(folder, lines, **how) as made:
                await test(made)

    uvloop.run(main())
