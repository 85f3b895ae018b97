"""An engine's worker as a child process: start it, hear when it is ready, keep its last words, end it.

Owns the process and its pipes. Must not know the line protocol. The worker prints log lines on stderr and exactly one
JSON line on stdout: `{"ready": true, "port": ...}` or `{"error": "..."}`. The end of its stdin ends it, so it never
outlives us.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from twinline.lines.protocol import LineError

log = logging.getLogger(__name__)
LEVELS = {
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
}  # as the worker begins a line

TAIL_LINES = 40
_PR_SET_PDEATHSIG = 1


class LineStartFailed(LineError):
    """The worker ended, said that it cannot start, or was not ready in time. The message holds its last words."""


def _death_signal() -> Callable[[], None] | None:
    """What a child runs before it becomes the worker, so that Linux kills it when this process dies; else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None).prctl  # loaded here: between fork and exec nothing may be imported
    except (OSError, AttributeError):
        return None

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return before_exec


class WorkerProcess:
    """One worker at a time: `start`, `stop`, and `start` again if need be."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._readers: list[asyncio.Task[None]] = []
        self._stopped = False
        self._spawned = False  # and not yet waited for

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return None if self._process is None else self._process.returncode

    def last_words(self) -> str:
        return "\n".join(self._tail)

    async def spawn(self) -> None:
        """Starts the worker and does not wait for it. Raises LineStartFailed."""
        self._stopped = False
        self._tail.clear()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                start_new_session=True,  # Ctrl-C reaches us alone: we end the worker after its requests
                preexec_fn=_death_signal(),
            )
        except OSError as error:
            raise LineStartFailed(f"line {self.name} cannot be started: {error}") from error
        assert self._process.stderr is not None
        self._readers.append(asyncio.create_task(self._follow(self._process.stderr)))
        self._spawned = True

    async def start(self, timeout: float) -> dict[str, Any]:
        """Starts the worker, unless `spawn` has; its ready line. Raises LineStartFailed; no process is left then."""
        if not self._spawned:
            await self.spawn()
        self._spawned = False
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                ready = await self._ready(self._process.stdout)
        except TimeoutError:
            await self.stop(grace=1.0)
            raise self._failure(f"was not ready within {timeout:g} s") from None
        except BaseException:
            await self.stop(grace=1.0)
            raise
        self._readers.append(asyncio.create_task(self._follow(self._process.stdout)))
        return ready

    async def _ready(self, stdout: asyncio.StreamReader) -> dict[str, Any]:
        try:
            line = await stdout.readline()
        except ValueError:
            raise self._failure("printed an endless line where its ready line belongs") from None
        if not line:
            await self.wait()
            await asyncio.wait(self._readers, timeout=1.0)  # its last words may still be in the pipe
            raise self._failure(f"ended with code {self.returncode} before it was ready")
        try:
            said = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            raise self._failure(f"printed {line[:200]!r} where its ready line belongs") from None
        if "error" in said:
            raise LineStartFailed(f"line {self.name} cannot start: {said['error']}")
        if not said.get("ready") or not isinstance(said.get("port"), int):
            raise self._failure(f"printed {line[:200]!r} where its ready line belongs")
        return said

    def _failure(self, what: str) -> LineStartFailed:
        tail = self.last_words()
        return LineStartFailed(f"line {self.name} {what}" + (f"; its last words:\n{tail}" if tail else ""))

    async def _follow(self, pipe: asyncio.StreamReader) -> None:
        """Logs what the worker prints and keeps the end of it."""
        rest = b""
        while data := await pipe.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._heard(line)
            rest = rest[-(1 << 16) :]
        if rest:
            self._heard(rest)

    def _heard(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        self._tail.append(text)
        level = LEVELS.get(text.partition(" ")[0], logging.INFO)
        log.log(level, "[%s] %s", self.name, text)

    async def wait(self) -> int:
        """Until the worker ends; its return code."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, and SIGKILL to its whole process group if it still runs after `grace` seconds."""
        process = self._process
        if process is None or self._stopped:
            return
        self._spawned = False
        self._stopped = True  # its process group may be signalled only once: the number can be given away later
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                async with asyncio.timeout(grace):
                    await process.wait()
        except TimeoutError:
            log.warning("line %s did not end within %g s of SIGTERM", self.name, grace)
        finally:
            self._kill_group(process.pid)  # the worker if it is still there, and what it may have started
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers.clear()

    @staticmethod
    def _kill_group(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
