"""Two engines that can be struck, each behind a relay that can be cut or answer 500.

Owns how a failure is made and mended. Must not know the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODEL = "tiny-r1"
FOLDER = Path(__file__).parents[2] / "src/twinline/models" / MODEL


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Relay:
    """A port before a line's own, that can be cut or answer 500 to what comes. Bytes pass as they are."""

    def __init__(self, port: int) -> None:
        self.port, self._target = free_port(), port
        self._server: asyncio.Server | None = None
        self._failing = False
        self._pairs: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._failing = False
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)

    async def cut(self) -> None:
        """Every connection is reset and no new one taken."""
        assert self._server is not None
        self._server.close()
        self._server = None
        for writer in tuple(self._pairs):
            reset(writer)

    def fail(self) -> None:
        """Requests on new connections get a 500; those on old ones too, which are closed for it between two answers."""
        self._failing = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner: asyncio.StreamWriter | None = None
        self._pairs.add(writer)
        try:
            back, inner = await asyncio.open_connection("127.0.0.1", self._target)
            self._pairs.add(inner)
            works = (self._forth(reader, inner, writer), pass_on(back, writer))
            both = [asyncio.ensure_future(work) for work in works]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            reset(writer)
        finally:
            for each in (writer, inner):
                if each is not None:
                    self._pairs.discard(each)
                    each.close()

    async def _forth(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._failing:
                    error = b'{"error": {"message": "the engine fails", "type": "server_error", "code": "line_failed"}}'
                    back.write(
                        b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\nconnection: close\r\n"
                        b"content-length: %d\r\n\r\n%b" % (len(error), error)
                    )
                    return
                to.write(data)


async def pass_on(reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            to.write(data)


def reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Worker:
    """One process of the native engine, behind its relay."""

    def __init__(self, name: str, device: str, slots: int, waiting: int) -> None:
        self.name, self.device, self.port = name, device, free_port()
        self.relay = Relay(self.port)
        self.born = 0.0
        self._options = ["--threads", "1", "--max-running", str(slots), "--max-waiting", str(waiting)]
        self.process: asyncio.subprocess.Process | None = None
        self.facts: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        argv = [sys.executable, "-m", "twinline.engine.worker", "--model", str(FOLDER), "--name", MODEL]
        argv += ["--host", "127.0.0.1", "--port", str(self.port), "--watch-stdin", "--log-level", "error"]
        argv += ["--device", self.device]
        self.process = await asyncio.create_subprocess_exec(
            *argv,
            *self._options,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        self.facts = json.loads(await self.process.stdout.readline())
        if not self.facts.get("ready"):
            raise RuntimeError(f"line {self.name} did not start: {self.facts}")
        self.born = time.time()
        await self.relay.open()

    async def fail(self, kind: str) -> None:
        assert self.process is not None
        if kind == "kill":
            self.process.kill()
        elif kind == "stop":
            self.process.send_signal(signal.SIGSTOP)
        elif kind == "cut":
            await self.relay.cut()
        else:
            self.relay.fail()

    async def mend(self, kind: str) -> None:
        assert self.process is not None
        if kind == "kill":
            await self.process.wait()
            await self.start()
        elif kind == "stop":
            self.process.send_signal(signal.SIGCONT)
        else:
            await self.relay.open()

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            await self.process.wait()
