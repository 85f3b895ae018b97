"""What an earlier control side left, where a file of it is damaged: what runs goes on, and what is lost is said."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lines.fleet.harness import PACE, controlled, fleet, line, lives, pid_of, serves, until

from twinline.lines import roster
from twinline.lines.fleet import home, identity
from twinline.lines.fleet.controller import Controller
from twinline.lines.fleet.engine import Engine
from twinline.lines.fleet.left import left
from twinline.lines.state import LineState

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "other": lambda data: b'{"what": "is this"}',
}


def damaged(path: Path, damage: str) -> None:
    path.write_bytes(DAMAGES[damage](path.read_bytes()))


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_roster_what_runs_is_taken_up_by_the_fleet_file(damage: str) -> None:
    async def test() -> None:
        wanted = fleet(line(replicas=2), line("b", options={"x": 1}))
        async with controlled(wanted) as first:
            await first.doors()
            before = {name: pid_of(first, name) for name in ("a", "a#2", "b")}
            await first.end(leave_running=True)
            damaged(first.directory / roster.ROSTER, damage)
            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            try:
                assert await second.begin(fleet(line(replicas=2), line("b"))) == []  # b is another now
                told = [event.reason for event in second.events.after(0) if event.state == "mended"]
                assert len(told) == 1 and "roster.json cannot be read" in told[0]
                assert {name: pid_of(second, name) for name in ("a", "a#2")} == {n: before[n] for n in ("a", "a#2")}
                assert serves(second, "b") and pid_of(second, "b") != before["b"] and not lives(before["b"])
                assert roster.read(second.directory).generation == second.generation
            finally:
                await second.end(leave_running=False)

    asyncio.run(test())


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_drained_by_hand_stays_so_though_its_file_is_damaged(damage: str) -> None:
    async def test() -> None:
        wanted = fleet(line(), line("b"))
        async with controlled(wanted) as first:
            await first.drain("b")
            await first.end(leave_running=True)
            damaged(first.directory / "held.json", damage)
            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            try:
                assert await second.begin(wanted) == []
                assert serves(second) and second.keepers["b"].held
                assert second.keepers["b"].state is LineState.STOPPED
                assert any("held.json cannot be read" in event.reason for event in second.events.after(0))
            finally:
                await second.end(leave_running=False)

    asyncio.run(test())


def test_a_fleet_that_never_ran_has_left_nothing(twinline_home: Path) -> None:
    directory = home.run_directory("f")
    home.prepare(directory)
    found = left(directory, fleet(line()))
    assert not found.roster.entries and not found.by_hand and not found.mended


def test_a_state_file_that_cannot_be_read_is_told_of(twinline_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = home.run_directory("f")
    home.prepare(directory)
    home.state_file(directory, "a").write_bytes(b'{"name":"a","pid":4711,"st')
    with caplog.at_level(logging.WARNING):
        assert Engine.find(directory, "a") is None
    assert "a.json cannot be read" in caplog.text and '"pid":4711' in caplog.text
    assert not home.state_file(directory, "a").exists()  # it was told of once


def test_nothing_is_ended_by_a_number_that_another_run_of_a_container_gave_away(
    twinline_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first process is younger than what the state file names: the group of that number is somebody else's."""

    async def test() -> None:
        directory = home.run_directory("f")
        home.prepare(directory)
        engine = Engine.start(
            directory, "a", ["sh", "-c", "sleep 60 & echo $!; exec sleep 60"], {}, port=1, spec_hash="s"
        )
        await until(lambda: engine.last_words() != "")
        child = int(engine.last_words())
        try:
            os.kill(engine.pid, signal.SIGKILL)
            await engine.ended()
            own = identity.started
            late = f"{identity.boot()}:{1 << 62}"
            monkeypatch.setattr(identity, "started", lambda pid: late if pid == 1 else own(pid))
            assert Engine.find(directory, "a") is None and not home.state_file(directory, "a").exists()
            assert lives(child)
        finally:
            os.kill(child, signal.SIGKILL)

    asyncio.run(test())


def test_a_process_is_of_this_run_of_the_machine() -> None:
    mine = identity.started(os.getpid())
    assert mine is not None and identity.is_of_this_run(mine)
    assert not identity.is_of_this_run(f"another-boot:{mine.rpartition(':')[2]}")
    assert not identity.is_of_this_run("ended at once")
