"""Engines behind HTTP: a server's process, and streams read from it as tokens come.

Owns connections and the waiting. A server's file says how it is started, what it is asked and how an event counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp

LONGEST_LINE = 1 << 23
STOP_SECONDS = 20.0

Body = dict[str, Any]
Counter = Callable[[bytes], int]  # tokens in one event's data


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Server:
    """A server on loopback, its output on this process's standard error; ended with its group."""

    def __init__(self, command: list[str], url: str, health: str, seconds: float = 600.0) -> None:
        self.url = url
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(url + health, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.01)
        code = self._process.poll()
        self.close()
        raise RuntimeError(f"{command[0]} " + (f"ended with code {code}" if code is not None else "did not get ready"))

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                return


class Streams:
    """Requests on one server. The loop runs only inside `step`."""

    def __init__(self, url: str, count: Callable[[], Counter]) -> None:
        self._url, self._count = url, count
        self._loop = asyncio.new_event_loop()
        self._came: asyncio.Queue[str | Exception] = asyncio.Queue()
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    def submit(self, body: Body) -> str:
        self._number += 1
        key = str(self._number)
        task = self._loop.create_task(self._ask(key, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return key

    async def _ask(self, key: str, body: Body) -> None:
        try:
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None),
                    read_bufsize=LONGEST_LINE,
                )  # fmt: skip
            tokens = self._count()
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    raise RuntimeError(f"HTTP {response.status}: {(await response.text())[:300]}")
                async for line in response.content:
                    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                        for _ in range(tokens(data)):
                            self._came.put_nowait(key)
        except Exception as error:
            self._came.put_nowait(error)

    def step(self) -> list[str]:
        if not self._tasks and self._came.empty():
            return []
        came = [self._loop.run_until_complete(self._next())]
        while not self._came.empty():
            came.append(self._came.get_nowait())
        for one in came:
            if isinstance(one, Exception):
                raise one
        return [one for one in came if isinstance(one, str)]

    async def _next(self) -> str | Exception:
        """The next token; an error where all streams end without one."""
        waiting = asyncio.ensure_future(self._came.get())
        while not waiting.done():
            running = set(self._tasks)
            await asyncio.wait({waiting, *running}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and not self._tasks and self._came.empty():
                waiting.cancel()
                return RuntimeError("the streams ended before their tokens came")
        return waiting.result()

    def close(self) -> None:
        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            if self._session is not None:
                await self._session.close()

        self._loop.run_until_complete(end())
        self._loop.close()
