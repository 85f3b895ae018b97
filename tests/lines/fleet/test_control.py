"""The control side as a process: asked on its socket, killed without harm, alone in its place, and ended by signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lines.fleet.harness import HERE, environment, lives

from twinline.lines.fleet import home
from twinline.lines.fleet.control import Control
from twinline.lines.fleet.controller import Controller, end_processes
from twinline.lines.fleet.status import asked, status
from twinline.lines.protocol import LineRefused

FLEET = """
name: f
models: {m: {text: embedded}}
lines:
  a: {engine: double, replicas: 2, price: 1 USD, surge: false}
  b: {engine: double, surge: false}
"""


class Side:
    """The control side's process, and what to ask it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.directory = home.run_directory("f")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / "control_double.py"), str(self.file), *options]
        with (self.file.parent / "said").open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment())
        return self.process

    def said(self) -> str:
        return (self.file.parent / "said").read_text()

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return asyncio.run(asked(self.directory, method, path, body))

    def begun(self) -> dict[str, Any]:
        """Waits until this process has brought everything up; its state."""
        assert self.process is not None

        def done() -> bool:
            assert self.process is not None and self.process.poll() is None, self.said()
            try:
                state = self.ask("GET", "/state")
            except Exception:
                return False
            return state["pid"] == self.process.pid and state["operations"][0]["state"] != "running"

        until(done)
        return self.ask("GET", "/state")

    def operated(self, number: int) -> list[str]:
        until(lambda: self.operation(number)["state"] != "running")
        return list(self.operation(number)["failures"])

    def operation(self, number: int) -> dict[str, Any]:
        return next(each for each in self.ask("GET", "/state")["operations"] if each["id"] == number)


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    side = Side(file)
    yield side
    if side.process is not None and side.process.poll() is None:
        side.process.kill()
        side.process.wait()
    asyncio.run(end_processes(side.directory, 0.2))


def pids(state: dict[str, Any]) -> dict[str, int]:
    return {line["entry"]["name"]: line["pid"] for line in state["lines"]}


def test_killed_it_leaves_all_running_and_the_next_one_takes_it_up(side: Side) -> None:
    side.start()
    first = side.begun()
    assert first["operations"][0]["failures"] == []
    engines, doors = pids(first), {gateway["name"]: gateway["pid"] for gateway in first["gateways"]}
    assert len(engines) == 3 and all(map(lives, [*engines.values(), *doors.values()]))
    assert home.control_socket(side.directory).stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        assert side.process is not None
        side.process.kill()
        side.process.wait()
        assert all(map(lives, [*engines.values(), *doors.values()]))
        truth = asyncio.run(status(side.directory))
        assert truth["control"] is None and [line["state"] for line in truth["lines"]] == ["serving"] * 3
        side.start()
        again = side.begun()
        assert pids(again) == engines and again["gateways"][0]["pid"] == doors["gateway-0"]
        assert again["generation"] >= first["generation"]
        assert {line["entry"]["state"] for line in again["lines"]} == {"serving"}
    os.kill(engines["a"], signal.SIGKILL)  # no child of this control side, and yet watched
    until(lambda: pids(side.ask("GET", "/state"))["a"] not in (None, engines["a"]))


def test_what_is_told_at_the_start_is_the_address_that_holds(side: Side) -> None:
    side.start()
    side.begun()
    assert side.process is not None
    side.process.kill()
    side.process.wait()
    (side.directory / "taken").write_text("2")
    side.file.write_text(f"{FLEET}gateway: {{port: 2}}\n")
    side.start()
    (failure,) = side.begun()["operations"][0]["failures"]
    assert "the gateway stays as it was" in failure
    until(lambda: side.said().count("begun") == 2)
    assert side.said().strip().splitlines()[-1].endswith(" 8000")


def test_it_is_asked_over_its_socket(side: Side) -> None:
    side.start()
    state = side.begun()
    before = pids(state)
    seen = state["events"][-1]["seq"]
    assert all(event["seq"] > seen for event in side.ask("GET", f"/state?after={seen}")["events"])

    side.file.write_text(FLEET.replace("price: 1 USD", "price: -1").replace("b: {engine: double", "b: {engine: doubl"))
    with pytest.raises(LineRefused) as refused:
        side.ask("POST", "/apply", {"fleet": str(side.file)})
    assert refused.value.status == 422 and refused.value.message.count("\n") == 1
    assert "fleet.yaml:5: lines.a.price" in refused.value.message and "fleet.yaml:6: lines.b" in refused.value.message

    secret, pipe = side.file.with_name("secret"), side.file.with_name("pipe.yaml")
    secret.write_text("user: hunter2\npassword: xyzzy\n")
    os.mkfifo(pipe)
    for unfit in (secret, pipe, Path("/dev/zero"), side.file.parent, Path("/nowhere"), Path("\0")):
        with pytest.raises(LineRefused, match=r"has neither|is no file") as refused:  # at once, and quoting nothing
            side.ask("POST", "/apply", {"fleet": str(unfit)})
        assert refused.value.status == 422
        assert not any(word in refused.value.message for word in ("hunter2", "password", "xyzzy"))

    side.file.write_text(FLEET.replace("price: 1 USD", "price: 2 USD").replace("b: {", "b: {options: {x: 1}, "))
    answer = side.ask("POST", "/apply", {"fleet": str(side.file)})
    assert [(change["change"], change["name"]) for change in answer["changes"]] == [("update", "a"), ("restart", "b")]
    assert side.operated(answer["operation"]) == []
    after = pids(side.ask("GET", "/state"))
    assert (after["a"], after["a#2"]) == (before["a"], before["a#2"]) and after["b"] != before["b"]

    assert side.operated(side.ask("POST", "/drain", {"line": "a#2"})["operation"]) == []
    assert pids(side.ask("GET", "/state"))["a#2"] is None
    assert side.operated(side.ask("POST", "/resume", {"line": "a#2"})["operation"]) == []
    assert pids(side.ask("GET", "/state"))["a#2"] is not None
    side.ask("POST", "/faults", {"line": "b", "reason": "a stream broke off"})
    for path, body in (("/drain", {"line": "c"}), ("/resume", {"line": "c"}), ("/faults", {"line": "c", "reason": ""})):
        with pytest.raises(LineRefused, match="there is no line 'c'; there are a, a#2, b") as refused:
            side.ask("POST", path, body)
        assert refused.value.status == 404
    with pytest.raises(LineRefused) as refused:
        side.ask("POST", "/drain", {})
    assert refused.value.status == 400

    side.ask("POST", "/down", {})
    assert side.process is not None and side.process.wait(60) == 0
    assert not any(map(lives, after.values()))


def test_only_one_works_on_a_fleet(side: Side) -> None:
    first = side.start()
    side.begun()
    second = side.start()
    assert second.wait(60) == 1
    assert f"fleet f is up already, under process {first.pid}" in side.said()
    side.process = first


@pytest.mark.parametrize("leave", [True, False])
def test_a_signal_ends_it_with_or_without_what_runs(side: Side, leave: bool) -> None:
    process = side.start(*(["--leave-running"] if leave else []))
    running = pids(side.begun()).values()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert [lives(pid) for pid in running] == [leave] * 3
    assert not home.controlled(side.directory) and not home.control_socket(side.directory).exists()


def test_what_its_end_breaks_off_has_failed() -> None:
    async def test() -> None:
        control = Control(Controller(Path("unused"), []), Path("fleet.yaml"))

        async def work() -> None:
            await asyncio.sleep(60)

        operation = control.operate("apply", work())
        await asyncio.sleep(0)
        await control.stop_operations()
        assert (operation.state, operation.failures) == ("failed", ["the control side ends"])

    asyncio.run(test())
