"""A process that outlives its starter: found by its state file, told from another of the same pid, ended whole."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.lines.fleet.harness import lives, until

from twinline.lines.fleet import engine as engines
from twinline.lines.fleet import home, identity
from twinline.lines.fleet.engine import Engine, EngineFailed, Ports
from twinline.lines.fleet.failures import Failures
from twinline.lines.fleet.pace import Pace


@pytest.fixture
def directory(twinline_home: Path) -> Path:
    path = home.run_directory("f")
    home.prepare(path)
    return path


def started(directory: Path, *argv: str, env: dict[str, str] | None = None) -> Engine:
    return Engine.start(directory, "a", argv, env or {}, port=1, spec_hash="s")


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


def test_it_is_found_by_its_state_file_and_ended_with_all_that_it_started(directory: Path) -> None:
    async def test() -> None:
        engine = started(directory, sys.executable, "-c", PARENT)
        await until(lambda: engine.last_words().startswith("child"))
        child = int(engine.last_words().split()[1])
        found = Engine.find(directory, "a")
        assert found is not None and found.standing == engine.standing and not found.ours
        assert os.getsid(engine.pid) == engine.pid  # Ctrl-C at our terminal does not reach it
        await found.stop(60)  # SIGTERM is enough: see the last line
        await until(lambda: not lives(child))
        assert not lives(engine.pid)
        assert Engine.find(directory, "a") is None
        assert "SIGTERM" in await engine.ended()

    asyncio.run(test())


def test_what_a_dead_engine_started_is_ended_when_it_is_looked_for(directory: Path) -> None:
    async def test() -> None:
        engine = started(directory, sys.executable, "-c", PARENT)
        await until(lambda: engine.last_words().startswith("child"))
        child = int(engine.last_words().split()[1])
        os.kill(engine.pid, signal.SIGKILL)
        await engine.ended()
        assert lives(child)
        assert Engine.find(directory, "a") is None
        await until(lambda: not lives(child))

    asyncio.run(test())


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_does_not_listen_to_sigterm_is_killed(directory: Path, stopped: bool) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )

    async def test() -> None:
        engine = started(directory, sys.executable, "-c", stubborn)
        await until(lambda: engine.last_words() == "up")
        if stopped:
            os.kill(engine.pid, signal.SIGSTOP)
        await engine.stop(0.1)
        assert not lives(engine.pid)

    asyncio.run(test())


def test_its_last_words_are_its_own_and_an_error_is_taken_out_of_its_json(directory: Path) -> None:
    async def test() -> None:
        first = started(directory, "sh", "-c", "echo earlier")
        await first.ended()
        second = started(directory, "sh", "-c", "exit 3")
        assert await second.ended() == "its process ended with code 3"
        third = started(directory, "sh", "-c", """echo noise >&2; echo '{"error": "no such card"}'""")
        assert await third.ended() == "its process ended with code 0 (no such card)"
        fourth = started(directory, "sh", "-c", """echo loading; echo '{"ready": true, "port": 1}'; exit 2""")
        assert await fourth.ended() == "its process ended with code 2 (loading)"
        with pytest.raises(EngineFailed, match="cannot be started"):
            started(directory, "/no/such/program")

    asyncio.run(test())


def test_a_long_log_is_put_aside_at_the_next_start(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LOG_BYTES", 1000)

    async def test() -> None:
        for words in ("a" * 2000, "b", "c"):
            await started(directory, "echo", words).ended()
        log = home.log_file(directory, "a")
        assert log.read_text() == "b\nc\n"
        assert log.with_suffix(".log.1").read_text() == "a" * 2000 + "\n"

    asyncio.run(test())


def test_what_its_container_left_is_cleaned_up(directory: Path, tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"

    async def test() -> None:
        clean = ("touch", str(mark))
        engine = Engine.start(directory, "a", ["sleep", "60"], {}, port=1, spec_hash="s", clean_up=clean)
        await engine.stop(1)
        assert mark.exists()
        mark.unlink()
        engine = Engine.start(directory, "a", ["sleep", "60"], {}, port=1, spec_hash="s", clean_up=clean)
        os.kill(engine.pid, signal.SIGKILL)
        await engine.ended()
        assert Engine.find(directory, "a") is None and mark.exists()

    asyncio.run(test())


def test_it_hears_of_an_end_at_once_where_the_kernel_tells(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And elsewhere too, by looking."""

    async def test() -> None:
        for tells in (True, False):
            if not tells:
                monkeypatch.delattr(os, "pidfd_open", raising=False)
            engine = started(directory, "sleep", "60")
            ending = asyncio.create_task(engine.ended())
            await asyncio.sleep(0.05)
            assert not ending.done()
            os.kill(engine.pid, signal.SIGKILL)
            assert await ending == "its process ended with signal SIGKILL"

    asyncio.run(test())


def test_a_process_is_its_pid_and_its_start() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        start = identity.started(child.pid)
        assert start is not None and start == identity.started(child.pid)
        assert identity.is_alive(child.pid, start)
        assert not identity.is_alive(child.pid, start + "0")
        child.kill()
        while identity.started(child.pid) is not None:  # a zombie: nobody has waited for it yet
            time.sleep(0.01)
        assert child.returncode is None
        assert not identity.is_alive(child.pid, start)
    finally:
        child.kill()
        child.wait()


def test_ports_are_free_and_none_is_given_twice() -> None:
    ports = Ports()
    given = [ports.free() for _ in range(20)]
    assert len(set(given)) == 20
    for port in given:
        socket.create_server(("127.0.0.1", port)).close()


def test_one_control_side_at_a_time(directory: Path) -> None:
    assert not home.controlled(directory)
    with home.lock(directory):
        assert home.controlled(directory)
        with pytest.raises(home.FleetIsUp, match=f"up already, under process {os.getpid()}"), home.lock(directory):
            pass
    assert not home.controlled(directory)


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set TWINLINE_HOME to a shorter path"):
        home.prepare(tmp_path / ("x" * 90))


def test_failures_are_counted_within_their_window() -> None:
    now = 0.0
    pace = Pace(failures=3, window=600, first_delay=1, longest_delay=30, cool_down=300, longest_cool_down=1000)
    failures = Failures(pace, lambda: now)
    delays = []
    for _ in range(2):
        failures.add()
        delays.append(failures.delay)
    assert delays == [1, 2] and not failures.too_many and failures.just_now
    now = 599.0
    assert not failures.just_now
    failures.add()
    assert failures.too_many
    now = 601.0
    assert not failures.too_many
    failures.half_open()
    assert not failures.too_many and failures.cool_down == 600
    failures.add()
    assert failures.too_many
    failures.half_open()
    assert failures.cool_down == 1000
    failures.forget()
    assert failures.cool_down == 300 and failures.recent == 0
