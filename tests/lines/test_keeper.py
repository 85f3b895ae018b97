"""Keeping a line alive: a worker that dies or hangs is started again, one that cannot start is given up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from twinline.lines import keeper
from twinline.lines.keeper import GaveUp, keep_alive
from twinline.lines.native import NativeLine
from twinline.lines.protocol import LineRefused, TokenRequest
from twinline.lines.state import LineState

WORKER = (sys.executable, str(Path(__file__).with_name("worker_double.py")))
REQUEST = TokenRequest(model="m", prompt=[1], request_id="r")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(keeper, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(keeper, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(keeper, "GRACE_SECONDS", 0.2)


def kept(test: Callable[[NativeLine, asyncio.Task[None]], Awaitable[None]], fault_file: Path) -> None:
    """Runs `test` with a line that is kept alive; what `fault_file` holds when a worker starts is its fault."""

    async def whole() -> None:
        line = NativeLine(Path("/nowhere"), "m", env={"WORKER_FAULT_FILE": str(fault_file)}, program=WORKER)
        async with asyncio.timeout(20):
            await line.start(timeout=10)
            keeping = asyncio.ensure_future(keep_alive(line, 10))
            try:
                await test(line, keeping)
            finally:
                keeping.cancel()
                await asyncio.wait((keeping,))
                await line.stop()

    uvloop.run(whole())


async def restarted(line: NativeLine, pid: int | None) -> None:
    while line.pid == pid or line.state is not LineState.SERVING:
        await asyncio.sleep(0.01)
    assert [token async for delta in line.stream(REQUEST) for token in delta.tokens] == [10, 11, 12]


def test_a_killed_worker_is_started_again_and_serves(tmp_path: Path) -> None:
    async def test(line: NativeLine, keeping: asyncio.Task[None]) -> None:
        for _ in range(2):
            pid = line.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            while line.state is not LineState.STARTING:
                await asyncio.sleep(0.005)
            with pytest.raises(LineRefused, match=r"is started again after .* code -9") as caught:
                line.stream(REQUEST)
            assert caught.value.status == 503
            await restarted(line, pid)

    kept(test, tmp_path / "none")


@pytest.mark.parametrize(
    ("fault", "why"),
    [("stalled", "made no step for 0.2 s with 1 requests"), ("mute", "3 health checks"), ("unwell", "card fell off")],
)
def test_a_worker_that_hangs_counts_as_dead(
    tmp_path: Path, fault: str, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "mute":
        monkeypatch.setattr("twinline.lines.client.QUESTION_SECONDS", 0.5)
    faults = tmp_path / "fault"
    faults.write_text(fault)

    async def test(line: NativeLine, keeping: asyncio.Task[None]) -> None:
        faults.write_text("")
        await restarted(line, line.pid)

    kept(test, faults)
    assert why in caplog.text


def test_a_worker_at_work_is_left_alone(tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("busy")

    async def test(line: NativeLine, keeping: asyncio.Task[None]) -> None:
        pid = line.pid
        await asyncio.sleep(0.6)
        assert (line.pid, line.state) == (pid, LineState.SERVING)

    kept(test, faults)


def test_a_worker_that_never_starts_again_is_given_up(tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("")

    async def test(line: NativeLine, keeping: asyncio.Task[None]) -> None:
        faults.write_text("error")
        assert line.pid is not None
        os.kill(line.pid, signal.SIGKILL)
        with pytest.raises(GaveUp, match=r"after 3 failed starts in a row: .*the folder has no config.json"):
            await keeping
        assert line.state is LineState.QUARANTINED and not line.alive
        with pytest.raises(LineRefused, match=r"is quarantined: .*the folder has no config.json"):
            line.stream(REQUEST)

    kept(test, faults)
