"""A disk that is full for a while: nothing is started that nobody knows, and what could not be told is told later."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lines.fleet.harness import PACE, controlled, fleet, line, lives, pid_of, serves, until

from twinline.lines import roster
from twinline.lines.fleet import engine as engine_module


class Disk:
    """Refuses what is written to files whose path has `full` in it; counts how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = ""
        self.refused = 0
        self.started: list[int] = []
        write, popen = Path.write_bytes, subprocess.Popen

        def write_bytes(path: Path, data: bytes) -> int:
            if self.full and self.full in str(path):
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, data)

        def started(*arguments: Any, **how: Any) -> subprocess.Popen[bytes]:
            child = popen(*arguments, **how)
            self.started.append(child.pid)
            return child

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        monkeypatch.setattr(engine_module.subprocess, "Popen", started)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    left = [pid for pid in disk.started if lives(pid)]
    for pid in left:
        os.killpg(pid, signal.SIGKILL)
    assert left == [], "processes that nobody ended"


def test_an_engine_whose_state_file_cannot_be_written_is_ended_and_tried_again(disk: Disk) -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"))) as controller:
            disk.full = "engines/a."
            os.kill(pid_of(controller), signal.SIGKILL)
            await until(lambda: disk.refused >= 5)  # often enough for quarantine, were it the line's doing
            tried = disk.started[-2:]
            assert "its state file cannot be written" in controller.keepers["a"].reason
            disk.full = ""
            await until(lambda: serves(controller))
            assert not any(map(lives, tried)), "it would be found by nobody"

    asyncio.run(test())


def test_a_gateway_comes_back_when_there_is_room_again(disk: Disk) -> None:
    async def test() -> None:
        async with controlled(fleet(line())) as controller:
            assert await controller.doors() == []
            gateway = controller.gateways[0]
            disk.full = "engines/gateway-0."
            assert gateway.engine is not None
            os.kill(gateway.engine.pid, signal.SIGKILL)
            await until(lambda: disk.refused >= 2)
            disk.full = ""
            await until(lambda: gateway.state == "serving")

    asyncio.run(test())


def test_a_stumble_in_keeping_a_gateway_does_not_end_it(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with controlled(fleet(line())) as controller:
            assert await controller.doors() == []
            gateway = controller.gateways[0]
            start, stumbles = engine_module.Engine.start, []

            def stumbling(*arguments: Any, **how: Any) -> Any:
                if len(stumbles) < 2:
                    stumbles.append("once more")
                    raise RuntimeError("nobody thought of that")
                return start(*arguments, **how)

            monkeypatch.setattr(engine_module.Engine, "start", stumbling)
            assert gateway.engine is not None
            os.kill(gateway.engine.pid, signal.SIGKILL)
            await until(lambda: len(stumbles) == 2 and gateway.state == "serving")
            assert any("nobody thought of that" in event.reason for event in controller.events.after(0))

    asyncio.run(test())


def test_what_could_not_be_told_is_told_later(disk: Disk) -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"))) as controller:
            disk.full = roster.ROSTER.removesuffix(".json")
            old = pid_of(controller)
            os.kill(old, signal.SIGKILL)
            await until(lambda: serves(controller) and pid_of(controller) != old and disk.refused > 0)
            disk.full = ""

            def told() -> str | None:
                return {entry.name: entry.url for entry in roster.read(controller.directory).entries}["a"]

            await until(lambda: told() == controller.keepers["a"].entry.url)

    asyncio.run(test())


def test_a_roster_that_cannot_be_written_is_tried_by_nobody_twice_at_a_time(disk: Disk) -> None:
    async def test() -> None:
        async with controlled(fleet(line())) as controller:
            disk.full = roster.ROSTER.removesuffix(".json")
            for price in range(1, 11):
                assert await controller.apply(fleet(line(price_per_hour=float(price)))) == []
            before = disk.refused
            await asyncio.sleep(10 * PACE.poll)
            assert 0 < disk.refused - before <= 12
            disk.full = ""
            await until(lambda: roster.read(controller.directory).entries[0].spec.price_per_hour == 10.0)

    asyncio.run(test())
