"""An engine's process (or a gateway's): started so that it outlives us, found again, ended.

Owns the process, its state file and its log. Must not know lines, health or HTTP. Nothing ties the process to its
starter: own session, no pipes, its log is a file that it holds itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from twinline.lines.fleet import home
from twinline.lines.fleet.identity import is_alive, is_of_this_run, started
from twinline.lines.protocol import LineError

log = logging.getLogger(__name__)

LOG_BYTES = 16 << 20  # a log longer than this is put aside, as one older file
TAIL_BYTES = 8192
CLEAN_UP_SECONDS = 20.0
LOOK_SECONDS = 0.2  # between two looks at a process where the kernel cannot tell us that it ended


class EngineFailed(LineError):
    """The process could not be started."""


class NoRecord(EngineFailed):
    """Its files cannot be written: that is the disk's doing, not the process's."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the state file says. `start` is from `identity.started`; `spec_hash` names what it was started for.

    `argv_hash` is the hash of its command line alone; `born` is in seconds of Unix time; `log_offset` is where its part
    of the log begins. `clean_up` is run once it has ended: what a container's runtime has left.
    """

    name: str
    pid: int
    start: str
    spec_hash: str
    argv_hash: str
    port: int
    born: float
    log_offset: int = 0
    clean_up: tuple[str, ...] = ()


def hash_of(*parts: object) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Ports:
    """Free ports on loopback, none given twice in a row: an engine binds its own only seconds later."""

    def __init__(self) -> None:
        self._given: list[int] = []

    def free(self) -> int:
        while True:
            with socket.create_server(("127.0.0.1", 0)) as unused:
                port = int(unused.getsockname()[1])
            if port not in self._given:
                self._given = [*self._given[-63:], port]
                return port


class Engine:
    """A process that lives, or has just ended. Get one from `start` or `find`."""

    def __init__(self, directory: Path, standing: Standing, child: subprocess.Popen[bytes] | None = None) -> None:
        self._directory = directory
        self._child = child
        self._ended = False
        self.standing = standing

    @classmethod
    def start(
        cls,
        directory: Path,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        port: int,
        spec_hash: str,
        clean_up: Sequence[str] = (),
        ours: bool = False,
        without: Collection[str] = (),
    ) -> Engine:
        """Starts it; `env` is added to our environment less `without`. Only what is `ours` gets the variables that
        begin with TWINLINE_: they hold secrets of the control side and the gateways. Raises EngineFailed.
        """
        log = home.log_file(directory, name)
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in without and (ours or not key.startswith("TWINLINE_"))
        }
        try:
            offset = _rotated(log)
            with log.open("ab") as out:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=inherited | dict(env),
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            raise EngineFailed(f"{argv[0]} cannot be started: {error}") from error
        standing = Standing(
            name=name,
            pid=child.pid,
            start=started(child.pid) or "ended at once",
            spec_hash=spec_hash,
            argv_hash=hash_of(list(argv)),
            port=port,
            born=time.time(),
            log_offset=offset,
            clean_up=tuple(clean_up),
        )
        try:
            _write(home.state_file(directory, name), standing)
        except OSError as error:  # a process that no file names would be found by nobody
            _end_group(child.pid, leader_lives=True)
            child.wait()
            _clean_up(standing)
            raise NoRecord(f"its state file cannot be written: {error}") from error
        return cls(directory, standing, child)

    @classmethod
    def find(cls, directory: Path, name: str) -> Engine | None:
        """The one whose state file is there and that still lives. What a dead one has left behind is cleared away."""
        standing = _standing(home.state_file(directory, name))
        if standing is None:
            home.state_file(directory, name).unlink(missing_ok=True)
            return None
        if is_alive(standing.pid, standing.start):
            return cls(directory, standing)
        if is_of_this_run(standing.start):
            _end_group(standing.pid)
        _clean_up(standing)
        home.state_file(directory, name).unlink(missing_ok=True)
        return None

    @classmethod
    def seen(cls, directory: Path, name: str) -> Engine | None:
        """The same, and nothing is touched."""
        standing = _standing(home.state_file(directory, name))
        lives = standing is not None and is_alive(standing.pid, standing.start)
        return cls(directory, standing) if standing is not None and lives else None

    @property
    def name(self) -> str:
        return self.standing.name

    @property
    def pid(self) -> int:
        return self.standing.pid

    @property
    def ours(self) -> bool:
        """Whether it was started here, not found."""
        return self._child is not None

    @property
    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return is_alive(self.standing.pid, self.standing.start)

    async def ended(self) -> str:
        """Waits until the process has ended; how it did, with its last words."""
        await _gone(self)
        code = None if self._child is None else self._child.poll()
        how = "its process ended" if code is None else f"its process ended with {_exit_text(code)}"
        words = self.last_words()
        return f"{how} ({words})" if words else how

    def last_words(self) -> str:
        """The last line that it logged; of JSON with an `error`, the error. A ready line tells nothing of an end."""
        try:
            with home.log_file(self._directory, self.name).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(min(self.standing.log_offset, size), size - TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        for line in filter(None, map(str.strip, reversed(lines))):
            said = _object(line)
            if not said.get("ready"):
                return str(said.get("error", line))[:500]
        return ""

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL to its whole process group after `grace` seconds; its state file goes."""
        if self.alive:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await _gone(self)
        if self.alive or not self._ended:
            _end_group(self.pid, self.alive)
        self._ended = True  # its number may be given away from now on
        await _gone(self)
        await asyncio.to_thread(_clean_up, self.standing)
        home.state_file(self._directory, self.name).unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _write(path: Path, standing: Standing) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(standing))
    fresh.chmod(0o600)
    fresh.replace(path)


def _standing(path: Path) -> Standing | None:
    data = b""
    try:
        data = path.read_bytes()
        return msgspec.json.decode(data, type=Standing)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        told = "%s cannot be read (%s): if the process that it named still runs, end it by hand; it begins %.80r"
        log.warning(told, path, error, data.decode("utf-8", "replace"))
        return None


def _end_group(pid: int, leader_lives: bool = False) -> None:
    """Kills what is left of a process and of all that it started and that stayed in its group.

    While a member lives the number is given to no new process, so a group whose leader is gone is still the same.
    """
    if leader_lives or started(pid) is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _clean_up(standing: Standing) -> None:
    if standing.clean_up:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(standing.clean_up, capture_output=True, timeout=CLEAN_UP_SECONDS, check=False)


async def _gone(engine: Engine) -> None:
    """Until the process has ended; at once where the kernel has descriptors of processes (Linux 5.3)."""
    try:
        descriptor = os.pidfd_open(engine.pid)
    except (AttributeError, OSError):
        while engine.alive:
            await asyncio.sleep(LOOK_SECONDS)
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        loop.add_reader(descriptor, over.set)
        if engine.alive:  # else the descriptor may be another process's, under the same number
            await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _rotated(log: Path) -> int:
    """Puts a log that has grown too long aside; where the next part begins."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= LOG_BYTES:
        return size
    log.replace(log.with_suffix(".log.1"))
    return 0


def _object(line: str) -> dict[str, Any]:
    """The JSON object that the line is, or an empty one."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
