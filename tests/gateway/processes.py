"""Real gateway processes of a fleet without a control side: a roster that the test writes, lines that it plays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.lines.line_double import LineDouble

from twinline.lines import roster
from twinline.lines.roster import Entry, GatewaySpec, ModelSpec, Roster
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

MODEL = "tiny-r1"
SECONDS = 30.0  # for anything to happen
FACTS = {"max_model_len": 512}


def until(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `what` returns once it is true."""
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def entry(name: str, url: str | None, **changes: Any) -> Entry:
    """A line that serves. `changes` are fields of Entry or LineSpec."""
    own = {field: changes.pop(field) for field in ("state", "reason", "born", "facts") if field in changes}
    fields: dict[str, Any] = {"model": MODEL, "engine": "native", "upstream": "m", "weights": "nowhere", **changes}
    spec = LineSpec(name=name.partition("#")[0], **fields)
    told: dict[str, Any] = {"state": LineState.SERVING, "reason": "it answers", "facts": FACTS, "born": 1.0, **own}
    return Entry(name=name, spec=spec, url=url, **told)


class Doubles:
    """Line doubles in a thread of their own. They may be scripted from the test's thread."""

    def __init__(self, count: int) -> None:
        self.lines = [LineDouble() for _ in range(count)]
        self.urls: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Doubles:
        self._thread.start()
        for line in self.lines:
            self.urls.append(asyncio.run_coroutine_threadsafe(line.start(), self._loop).result(10))
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            for line in self.lines:
                await line.stop()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def simulated(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A simulated engine's process and its URL."""
    argv = [sys.executable, "-m", "twinline.lines.simulated", "--name", "m", "--text", str(folder), "--watch-stdin"]
    process = subprocess.Popen([*argv, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.kill()
        process.communicate()


@dataclass
class Gateway:
    """One process of the fleet."""

    index: int
    process: subprocess.Popen[bytes]
    socket: Path
    stderr: Path

    def ask(self, path: str, method: str = "GET") -> httpx.Response:
        """By its Unix socket, as the control side does."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), timeout=10) as client:
            return client.request(method, f"http://gateway{path}")

    def log(self) -> list[str]:
        return self.stderr.read_text("utf-8").splitlines()

    def records(self) -> list[dict[str, Any]]:
        """The log's lines; every one of them has to be JSON."""
        return [json.loads(line) for line in self.log()]

    def access(self, request_id: str) -> dict[str, Any]:
        """The access log's line of a request, once it is there: exactly one."""

        def found() -> list[dict[str, Any]]:
            told = [json.loads(line) for line in self.log() if '"twinline.access"' in line and line.endswith("}")]
            return [record for record in told if record["request_id"] == request_id]

        until(found)
        (record,) = found()
        return record

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


@dataclass
class Fleet:
    """`directory` is the run directory, and TWINLINE_HOME."""

    directory: Path
    text: Path
    settings: GatewaySpec
    env: dict[str, str]
    entries: list[Entry] = field(default_factory=list)
    models: tuple[ModelSpec, ...] = ()
    generation: int = 0
    gateways: list[Gateway] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def write(self) -> None:
        """Tells the gateways what holds now."""
        self.generation += 1
        models = self.models or (ModelSpec(name=MODEL, text=str(self.text), policy="fastest"),)
        roster.write(self.directory, Roster(fleet="test", generation=self.generation, gateway=self.settings,
                                            models=models, entries=tuple(self.entries)))  # fmt: skip

    def followed(self) -> None:
        """Writes, and waits until every gateway works by it."""
        self.write()
        for gateway in self.gateways:
            until(lambda gateway=gateway: gateway.ask("/api/lines").json()["generation"] == self.generation)

    def start(self, index: int = 0, *options: str) -> Gateway:
        stderr = self.directory / f"gateway-{index}.log"
        argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(self.directory), "--index", str(index)]
        with stderr.open("ab") as out:
            process = subprocess.Popen(
                [*argv, *options], stdout=subprocess.PIPE, stderr=out, env={**os.environ, **self.env}
            )
        gateway = Gateway(index, process, self.directory / f"gateway-{index}.sock", stderr)
        self.gateways.append(gateway)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ready"], gateway.log()
        until(gateway.socket.exists)
        return gateway

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, headers=headers)

    def complete(self, client: httpx.Client, **fields: Any) -> httpx.Response:
        request_id = fields.pop("request_id", None)
        headers = {} if request_id is None else {"x-request-id": request_id}
        return client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields}, headers=headers)


@contextmanager
def fleet(text: Path, env: dict[str, str] | None = None, **settings: Any) -> Iterator[Fleet]:
    """An empty fleet. Its processes are ended with it, however the test ends."""
    directory = Path(tempfile.mkdtemp(prefix="twinline-"))  # short enough for a Unix socket in it
    spec = GatewaySpec(**{"port": free_port(), "log_format": "json", "queue_seconds": 2.0, **settings})
    made = Fleet(directory, text, spec, {"TWINLINE_HOME": str(directory), **(env or {})})
    try:
        yield made
    finally:
        for gateway in made.gateways:
            with contextlib.suppress(ProcessLookupError):
                gateway.process.send_signal(signal.SIGCONT)
            gateway.process.kill()
            gateway.process.communicate()
        shutil.rmtree(directory, ignore_errors=True)
