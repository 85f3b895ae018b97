"""The native line's process: ready, failing to start, dying in service, stopped, and orphaned."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from twinline.lines.native import LineStartFailed, NativeLine
from twinline.lines.protocol import LineRefused, TokenRequest
from twinline.lines.spec import LineSpec, weights_class
from twinline.lines.state import LineState

WORKER = (sys.executable, str(Path(__file__).with_name("worker_double.py")))
REQUEST = TokenRequest(model="m", prompt=[1], request_id="r")


def line_of(fault: str = "") -> NativeLine:
    return NativeLine(Path("/nowhere"), "m", ["--threads", "1"], env={"WORKER_FAULT": fault}, program=WORKER)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    uvloop.run(limited())


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--weights", "int4"], {"weights": "int4"}),
        (["--head-weights", "int8", "--dtype", "float32"], {"dtype": "float32", "head_weights": "int8"}),
    ],
)
def test_its_weights_class_is_that_of_a_fleets_line(flags: list[str], options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    line = NativeLine(tmp_path / "link", "m", ["--threads", "1", *flags], program=WORKER)
    assert line.spec.weights_class == weights_class(
        LineSpec(name="any", model="m", engine="native", weights=str(tmp_path.resolve()), options=options)
    )
    assert line.spec.weights_class != line_of().spec.weights_class
    assert (line.spec.weights_class == NativeLine(tmp_path, "m").spec.weights_class) is (not flags)


def test_a_folder_that_pools_makes_it_a_line_of_vectors(tmp_path: Path) -> None:
    assert not NativeLine(tmp_path, "m").spec.embeds
    (tmp_path / "modules.json").write_text("[]")
    line = NativeLine(tmp_path, "m")
    assert line.spec.embeds and line.vectors is not None


@pytest.mark.parametrize("begun", [False, True])
def test_start_serve_stop_and_start_again(begun: bool) -> None:
    async def test() -> None:
        line = line_of()
        for _ in range(2):
            if begun:
                await line.begin()
            ahead = line.pid if begun else None
            await line.start(timeout=10)
            assert ahead in (None, line.pid)
            assert (line.state, line.alive, line.facts["max_model_len"]) == (LineState.SERVING, True, 512)
            assert [token async for delta in line.stream(REQUEST) for token in delta.tokens] == [10, 11, 12]
            await line.stop(grace=5)
            assert (line.state, line.alive) == (LineState.STOPPED, False)
            assert line.returncode == -signal.SIGTERM
            await line.stop()
            with pytest.raises(LineRefused, match="is stopped: it was asked to"):
                line.stream(REQUEST)

    run(test)


def test_a_line_that_has_begun_is_stopped_before_it_starts() -> None:
    async def test() -> None:
        line = line_of("slow")
        await line.begin()
        pid = line.pid
        assert pid is not None and line.alive and not gone(pid)
        await line.stop(grace=5)
        assert line.state is LineState.STOPPED and not line.alive and gone(pid)
        with pytest.raises(LineStartFailed, match="cannot be started"):
            await NativeLine(Path("/nowhere"), "m", program=("/no/such/program",)).begin()

    run(test)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error", "cannot start: the folder has no config.json"),
        ("crash", "(?s)ended with code 3.*out of memory"),
        ("slow", "(?s)not ready within 5 s.*loading weights"),
        ("chatter", "hello.*where its ready line belongs"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_failed_start_says_why_and_leaves_no_process(fault: str, said: str, begun: bool) -> None:
    async def test() -> None:
        line = line_of(fault)
        if begun:
            await line.begin()
        with pytest.raises(LineStartFailed, match=said):
            await line.start(timeout=5 if fault == "slow" else 30)
        assert line.state is LineState.STOPPED
        assert not line.alive and line.pid is not None and gone(line.pid)

    run(test)


def test_a_program_that_is_not_there() -> None:
    async def test() -> None:
        line = NativeLine(Path("/nowhere"), "m", program=("/nowhere/program",))
        with pytest.raises(LineStartFailed, match="cannot be started"):
            await line.start(timeout=1)

    run(test)


def test_cancelling_a_start_ends_the_process() -> None:
    async def test() -> None:
        line = line_of("slow")
        task = asyncio.ensure_future(line.start(timeout=30))
        while not line.alive:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not line.alive and line.state is LineState.STOPPED

    run(test)


def test_a_killed_worker_stops_the_line_at_once() -> None:
    async def test() -> None:
        line = line_of()
        await line.start(timeout=10)
        assert line.pid is not None
        os.kill(line.pid, signal.SIGKILL)
        while line.state is LineState.SERVING:
            await asyncio.sleep(0.01)
        with pytest.raises(LineRefused, match="its process ended with code -9"):
            line.stream(REQUEST)
        await line.stop()

    run(test)


def test_a_stubborn_worker_is_killed_after_the_grace() -> None:
    async def test() -> None:
        line = line_of("stubborn")
        await line.start(timeout=10)
        await line.stop(grace=0.2)
        assert line.returncode == -signal.SIGKILL

    run(test)


def test_the_worker_dies_with_its_parent() -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from twinline.lines.native import NativeLine\n"
        "async def main():\n"
        f"    line = NativeLine(Path('/nowhere'), 'm', program={WORKER!r}); await line.start(10)\n"
        "    print(line.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while not gone(worker):
        assert time.monotonic() < until
        time.sleep(0.02)
