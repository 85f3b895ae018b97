"""The door itself: several models, a model that does not chat, and what the gateway must never import."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message
from tests.gateway.harness import SPEC, Gateway, served
from tests.lines.line_double import LineDouble, Script
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from twinline.gateway.access import Access, Visit
from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.gateway.exchange import Exchange
from twinline.gateway.heads import CONNECTION, CYCLE
from twinline.gateway.logs import told_of
from twinline.gateway.meters import Meters
from twinline.gateway.served import ModelText, ServedModel
from twinline.lines.line import Line
from twinline.lines.state import LineState
from twinline.lines.turn import Turn


class NoSocket:
    """A connection that takes everything, and uvicorn's cycle of the one request on it; `written` is its answer."""

    watcher = None
    full = False

    def __init__(self, body: bytes) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = Turn.of(self.loop)
        self.written = b""
        self.transport = self.flow = self
        self.body = bytearray(body)
        self.more_body = self.disconnected = False
        self.keep_alive = True
        self.default_headers: list[tuple[bytes, bytes]] = []
        self.message_event = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None: ...

    def resume_reading(self) -> None: ...

    def on_response(self) -> None: ...


def app_of(*models: ServedModel, meters: Meters | None = None) -> App:
    return App(Door(models, meters=meters))


async def request(app: ASGIApp, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One exchange without a socket."""
    sent: list[Message] = []
    got = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        return got.pop() if got else await asyncio.Future[Any]()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": [], "root_path": ""}
    socket = NoSocket(body)
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "server": ("x", 80)}
    await app(scope | {CONNECTION: socket, CYCLE: socket}, receive, send)
    if socket.written:
        head, _, answer = socket.written.partition(b"\r\n\r\n")
        return int(head.split()[1]), answer
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_two_models_have_their_own_lines_and_one_metrics_text(tiny_folder: Path) -> None:
    async def test() -> None:
        text = ModelText.load(tiny_folder)
        doubles = {name: LineDouble() for name in "ab"}
        meters = Meters()
        models = []
        for name, double in doubles.items():
            double.metrics = double.metrics.replace('"m"', f'"{name}"')
            line = Line(f"line-{name}", replace(SPEC, upstream=f"inner-{name}"), await double.start())
            await line.verify()
            models.append(served(name, text, [line], meters))
        app = app_of(*models, meters=meters)
        status, _ = await request(app, "POST", "/v1/completions", b'{"model": "b", "prompt": "x"}')
        assert status == 200
        assert doubles["b"].requests[-1]["model"] == "inner-b" and len(doubles["a"].requests) == 1
        _, metrics = await request(app, "GET", "/metrics")
        assert metrics.count(b"# TYPE vllm:num_requests_running gauge") == 1
        assert b'vllm:num_requests_running{line="line-a",model_name="a"} 2.0' in metrics
        assert b'vllm:num_requests_running{line="line-b",model_name="b"} 2.0' in metrics
        await doubles["a"].stop()
        status, metrics = await request(app, "GET", "/metrics")
        assert status == 200 and b'running{line="line-a"' not in metrics
        _, listed = await request(app, "GET", "/v1/models")
        assert [entry["id"] for entry in json.loads(listed)["data"]] == ["a", "b"]

    asyncio.run(test())


def test_a_model_without_a_template_completes_but_does_not_chat(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    config = json.loads((tiny_folder / "tokenizer_config.json").read_text("utf-8"))
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")

    async def test() -> None:
        double = LineDouble()
        line = Line("l", SPEC, await double.start())
        await line.verify()
        app = app_of(served("base", ModelText.load(tmp_path), [line], Meters()))
        body = b'{"model": "base", "messages": [{"role": "user", "content": "x"}]}'
        status, answer = await request(app, "POST", "/v1/chat/completions", body)
        assert status == 400 and b"no chat template; use /v1/completions" in answer
        status, _ = await request(app, "POST", "/v1/completions", b'{"model": "base", "prompt": "x"}')
        assert status == 200
        _, listed = await request(app, "GET", "/v1/models/base")
        assert json.loads(listed)["capabilities"] == {"chat": False, "completions": True, "embeddings": False}

    asyncio.run(test())


def test_who_does_not_read_while_the_gateway_stops_is_logged_all_the_same(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str | None] = []

    class Seen:
        def began(self, exchange: Exchange, visit: Visit) -> None: ...

        def ended(self, exchange: Exchange, visit: Visit) -> None:
            reasons.append(told_of(exchange, visit)["reason"])

    async def main() -> None:
        double, access = LineDouble(), Access()
        access.observers.append(Seen())
        double.script = lambda request: Script(fault="hang", fault_after=1)
        line = Line("double", SPEC, await double.start())
        line.life.told(LineState.SERVING, "the test says so")
        model = served(SPEC.model, ModelText.load(tiny_folder), [line], Meters())
        monkeypatch.setattr(NoSocket, "full", True)
        body = json.dumps({"model": SPEC.model, "prompt": "Hi", "stream": True}).encode()
        asked = asyncio.create_task(request(App(Door([model], access=access)), "POST", "/v1/completions", body))
        while not any(call.tokens for call in line.calls):
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(IndexError):  # there is no answer
            await asked
        await asyncio.sleep(0)
        await double.stop()

    asyncio.run(main())
    assert reasons == ["server_stopping"]


def test_names_are_unique(tiny_folder: Path) -> None:
    text = ModelText.load(tiny_folder)
    with pytest.raises(ValueError, match="two models are named a"):
        app_of(*(served("a", text, [Line("l", SPEC)], Meters()) for _ in range(2)))


def test_a_failure_of_the_gateway_itself_is_told_and_counted(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = served("a", ModelText.load(tiny_folder), [Line("l", SPEC)], Meters())
    monkeypatch.setattr(model.supply, "place", None)
    app = app_of(model)
    status, answer = asyncio.run(request(app, "POST", "/v1/completions", b'{"model": "a", "prompt": "x"}'))
    assert status == 500 and json.loads(answer)["error"]["code"] == "internal_error"
    assert "completions failed" in caplog.text


def test_the_gateway_imports_neither_the_engine_nor_torch() -> None:
    code = (
        "import sys, twinline.gateway.serve\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'torch' or name.startswith('twinline.engine')])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "[]\n"


def test_what_was_answered_is_freed_without_the_collector(door: Gateway) -> None:
    def alive() -> int:
        return sum(isinstance(each, RequestResponseCycle) for each in gc.get_objects())

    door.says("out")
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(5):
            assert door.complete().status_code == door.chat().status_code == 200
        door.until(lambda: alive() <= before + 1)  # a connection keeps its latest
    finally:
        gc.enable()


def test_what_the_end_of_the_gateway_cuts_off_is_counted_once(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or streamed; an answer that was given a moment before is no refusal."""

    async def main() -> None:
        double, meters = LineDouble(), Meters()
        double.script = lambda request: Script(fault="hang", fault_after=1)
        line = Line("double", SPEC, await double.start())
        line.life.told(LineState.SERVING, "the test says so")
        app = app_of(served(SPEC.model, ModelText.load(tiny_folder), [line], meters), meters=meters)

        def ask(**fields: Any) -> asyncio.Task[tuple[int, bytes]]:
            body = json.dumps({"model": SPEC.model, "prompt": "Hi", **fields}).encode()
            return asyncio.create_task(request(app, "POST", "/v1/completions", body))

        def refused() -> float:
            return meters.refusals.labels(SPEC.model, "server_stopping").value

        asked = [ask(), ask(stream=True)]
        while len(double.requests) < 2 or not all(call.tokens for call in line.calls):
            await asyncio.sleep(0.01)
        for each in asked:
            each.cancel()
        (status, body), (streamed, events) = await asyncio.gather(*asked)
        assert (status, streamed) == (503, 200) and b"server_stopping" in body and b"server_stopping" in events
        assert refused() == 2
        double.script = lambda request: Script()
        late = [ask(), ask(stream=True)]
        monkeypatch.setattr(NoSocket, "on_response", lambda _: [each.cancel() for each in late])
        for each in late:
            status, body = await each
            assert status == 200 and b"server_stopping" not in body
        assert refused() == 2
        await double.stop()

    asyncio.run(main())
