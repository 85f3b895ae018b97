"""The fleet's verbs, from a file to running processes and back: what they do, print and end with."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.lines.fleet.harness import environment, lives

from twinline.cli import main
from twinline.cli.ps import span
from twinline.lines.fleet import home
from twinline.lines.fleet.controller import end_processes
from twinline.lines.fleet.file import load

CLI = [sys.executable, str(Path(__file__).with_name("fleet_cli.py"))]
FLEET = """
name: f
models: {m: {text: embedded}}
lines:
  fast: {engine: simulated, chip: nvidia-h20, price: 2 EUR, replicas: 2}
  cheap: {engine: simulated, price: 1 EUR}
"""


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fleet file on a free port, in a home of its own; what runs at the end is ended."""
    folder = Path(tempfile.mkdtemp(prefix="tw"))
    monkeypatch.setenv("TWINLINE_HOME", str(folder / "home"))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    path = folder / "fleet.yaml"
    path.write_text(f"{FLEET}gateway: {{port: {port}}}\n")
    yield path
    directory = home.run_directory("f")
    if home.controlled(directory):
        os.kill(int((directory / "control.lock").read_text()), signal.SIGKILL)
    asyncio.run(end_processes(directory, 0.2))
    shutil.rmtree(folder, ignore_errors=True)


def twinline(*arguments: str | Path, code: int = 0, cli: list[str] = CLI) -> str:
    """What the verb prints, on both streams."""
    command = [*cli, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def ps() -> dict[str, Any]:
    return dict(json.loads(twinline("ps", "--json")))


def pids(said: dict[str, Any]) -> dict[str, int]:
    return {line["name"]: line["pid"] for line in said["lines"]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_fleets_whole_life(file: Path) -> None:
    assert "+ line fast" in twinline("diff", file)
    told = twinline("up", "--detach", file)
    assert told.rstrip().endswith(f"m (demonstration model) at http://127.0.0.1:{port_of(file)}/v1")
    assert "its test request was answered" in told
    first = ps()
    assert [(line["name"], line["state"]) for line in first["lines"]] == [
        ("fast", "serving"), ("fast#2", "serving"), ("cheap", "serving"),
    ]  # fmt: skip
    assert first["lines"][0]["live"]["predicted_tpot_seconds"] == 0.02
    assert all(lives(pid) for pid in pids(first).values())
    listing = twinline("ps")
    for words in ("EUR/h", "simulated nvidia-h20", "3 of 3", "fast#2", "50", str(pids(first)["cheap"])):
        assert words in listing
    assert "is up already" in twinline("up", file, code=1)
    assert twinline("diff", file) == "nothing would change\n"

    edit(file, "price: 1 EUR", "price: 1 EUR, options: {seed: 1}, surge: false")
    edit(file, "2 EUR", "3 EUR")
    changes = json.loads(twinline("diff", "--json", file))["changes"]
    assert [(change["change"], change["name"]) for change in changes] == [("update", "fast"), ("restart", "cheap")]
    assert "! line cheap  replaced replica by replica: options none -> {seed: 1}" in twinline("apply", file)
    second = ps()
    assert pids(second)["fast"] == pids(first)["fast"] and pids(second)["cheap"] != pids(first)["cheap"]
    assert second["lines"][0]["price_per_hour"] == 3

    assert "there is no line 'quick'" in twinline("drain", "quick", code=1)
    assert "draining" in twinline("drain", "cheap")
    assert "no other line serves m: its requests would get 503 until fast is back" in twinline("drain", "fast", code=1)
    listing = twinline("ps")
    assert "cheap: drained by hand" in listing and "2 of 3" in listing
    assert "serving" in twinline("up", "--resume", "cheap")

    running = ps()
    os.kill(running["control"]["pid"], signal.SIGKILL)
    wait(lambda: not home.controlled(home.run_directory("f")))
    assert "the control side is dead" in twinline("ps", "f")
    assert pids(ps()) == pids(running)
    assert "the control side of fleet f does not run" in twinline("drain", "cheap", code=1)
    os.kill(pids(running)["fast"], signal.SIGKILL)
    listing = twinline("ps")
    assert "fast: its process has ended, and no control side is there" in listing

    assert "adopted" in twinline("up", "--detach", file)
    again = ps()
    assert pids(again)["cheap"] == pids(running)["cheap"] and pids(again)["fast"] != pids(running)["fast"]
    assert [gateway["pid"] for gateway in again["gateways"]] == [gateway["pid"] for gateway in running["gateways"]]
    assert twinline("down", file) == "fleet f is down\n"
    assert not any(lives(pid) for pid in pids(again).values())
    assert "no fleet runs here" in twinline("ps", code=1)
    assert "fleet f is not up" in twinline("down", "f", code=1)


def test_down_ends_what_a_dead_control_side_left(file: Path) -> None:
    twinline("up", "--detach", file)
    running = ps()
    os.kill(running["control"]["pid"], signal.SIGKILL)
    wait(lambda: not home.controlled(home.run_directory("f")))
    assert "its control side was gone, ended here: cheap, fast, fast#2, gateway-0" in twinline("down")
    assert not any(lives(pid) for pid in pids(running).values())


def test_a_roster_that_cannot_be_read_is_no_fleet_that_is_down(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = home.run_directory("f")
    home.prepare(directory)
    (directory / "roster.json").write_text('{"fleet": "f", "gen')
    assert main(["ps"]) == 1
    told = capsys.readouterr().err
    assert "roster.json cannot be read" in told and "takes up what still runs" in told and "is not up" not in told


def test_a_line_that_fails_makes_a_detached_start_fail_and_says_why(file: Path) -> None:
    edit(file, "price: 1 EUR", "price: 1 EUR, options: {fault: {mode: '500'}}")
    told = twinline("up", "--detach", file, code=1)
    assert "not everything is up: cheap: its test request failed" in told
    assert pids(ps())["fast"]  # the others serve
    twinline("down")


class Load:
    """Streams without a pause, from several threads, until the block is left; what came, by question."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self.url = url
        self.answers: dict[str, set[str]] = {}
        self.faults: list[str] = []
        self.whole = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(f"What is {n}+25?",)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, count: int = 12) -> None:
        """Waits until so many more answers are whole."""
        target = self.whole + count
        wait(lambda: self.whole >= target or self.faults)

    def _ask(self, question: str) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0}
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._over.is_set():
                try:
                    with client.stream(
                        "POST", f"{self.url}/v1/chat/completions", json=body | {"max_tokens": 40}
                    ) as answer:
                        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
                    assert answer.status_code == 200 and events[-1] == "[DONE]", events[-1:]
                    chunks = [json.loads(event) for event in events[:-1]]
                    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
                    text = "".join((d.get("reasoning_content") or "") + (d.get("content") or "") for d in deltas)
                    self.answers.setdefault(question, set()).add(text)
                    self.whole += 1
                except Exception as error:
                    self.faults.append(repr(error))
                    return


def test_no_request_fails_while_lines_are_changed_drained_killed_and_taken_up_again(file: Path) -> None:
    """With the real gateway: a line is replaced, one drained, an engine killed, and the control side twice."""
    real = [sys.executable, "-m", "twinline.cli"]
    edit(file, "engine: simulated", "engine: simulated, weights: embedded")
    edit(file, "chip: nvidia-h20", "surge: false, options: {decode_tokens_per_second: 200}")
    twinline("up", "--detach", file, cli=real)
    with Load(f"http://127.0.0.1:{port_of(file)}") as load:
        load.more()
        edit(file, "decode_tokens_per_second: 200", "decode_tokens_per_second: 300")
        assert "! line fast" in twinline("apply", file, cli=real)
        load.more()
        twinline("drain", "cheap", cli=real)
        load.more()
        twinline("up", "--resume", "cheap", cli=real)
        for victim in ("control", "fast", "control"):
            wait(lambda: all(line["state"] == "serving" for line in ps()["lines"]))
            said = ps()
            before = pids(said)
            os.kill(said["control"]["pid"] if victim == "control" else before[victim], signal.SIGKILL)
            if victim == "control":
                wait(lambda: not home.controlled(home.run_directory("f")))
                load.more()
                assert "adopted" in twinline("up", "--detach", file, cli=real)
                assert pids(ps()) == before
            load.more()
    assert load.faults == []
    assert {question: len(texts) for question, texts in load.answers.items()} == dict.fromkeys(load.answers, 1)
    twinline("down", cli=real)


@pytest.mark.parametrize("leave", [False, True])
def test_ctrl_c_ends_all_unless_it_is_to_be_left(file: Path, leave: bool) -> None:
    command = [*CLI, "up", str(file), *(["--leave-running"] if leave else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        while "/v1" not in (line := process.stdout.readline()):
            assert line, "it ended"
        running = pids(ps()).values()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert [lives(pid) for pid in running] == [leave] * 3
    finally:
        process.kill()
        process.communicate()


def test_mistakes_are_told_one_a_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(file, "replicas: 2", "replica: 2")
    for verb in ("up", "diff", "apply"):
        assert main([verb, str(file)]) == 2
        assert capsys.readouterr().err == (
            f"twinline: error: {file}:5: lines.fast.replica: there is no such field; did you mean 'replicas'?\n"
        )
    edit(file, "price: 1 EUR", "price: 1 USD")
    assert main(["diff", str(file)]) == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{file}:5: ") and second.startswith(f"{file}:6: lines.cheap.price: USD beside EUR")
    assert last == f"twinline: error: {file} has 2 mistakes"


def test_a_chip_that_nobody_knows_is_warned_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(file, "nvidia-h20", "nvidia-h2o")
    assert main(["diff", str(file)]) == 0
    told = capsys.readouterr()
    assert told.err.startswith(f"twinline: warning: {file}:5: lines.fast.chip: taken as it stands, though no chip is")
    assert "did you mean h20" in told.err and "warning" not in told.out


def test_what_cannot_be_asked_is_said_in_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["ps"], "no fleet runs here: `twinline up FLEET.yaml` starts one"),
        (["ps", "other"], "no fleet 'other' has run here"),
        (["apply", str(file)], "the control side of fleet f does not run"),
        (["up"], "name a fleet file"),
        (["up", str(file.with_name("gone.yaml"))], "gone.yaml cannot be read: no such file"),
        (["down", str(file)], "fleet f is not up"),
    ):
        assert main(arguments) != 0
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_named_by_every_verb(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("twinline.cli.fleet_control.name_of", broken)
    for verb in ("ps", "down"):
        assert main([verb, str(file)]) == 2
        assert f"{file} cannot be read: input/output error" in capsys.readouterr().err


def test_a_fleet_can_be_ended_and_seen_whatever_else_is_in_its_file(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(file, "replicas: 2", "replica: 2, url: 'http://${NOBODY_SET_THIS}'")
    for verb in ("down", "ps"):
        assert main([verb, str(file)]) == 1
        assert "fleet" in capsys.readouterr().err
    edit(file, "name: f", "name: 'f g'")
    assert main(["down", str(file)]) == 2
    assert f"{file}:2: name: expected letters" in capsys.readouterr().err


def test_a_port_in_use_is_refused_before_anything_starts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", port_of(file))):
        assert main(["up", "--detach", str(file)]) == 1
    assert f"is in use: choose another with `port` under `gateway` in {file}" in capsys.readouterr().err
    assert not home.control_socket(home.run_directory("f")).exists()


def test_the_example_is_sound() -> None:
    fleet = load(Path(__file__).parents[2] / "examples" / "laptop.yaml", {})
    assert {spec.engine for spec in fleet.lines} >= {"native", "simulated"}
    assert {spec.name for spec in fleet.lines} | set(fleet.notes) == {"cpu", "llamacpp", "nvidia", "ascend"}


def test_spans() -> None:
    assert [span(s) for s in (0, 59.9, 60, 3725, 90000)] == ["0s", "59s", "1m0s", "1h2m", "1d1h"]


def port_of(file: Path) -> int:
    return load(file, {}).gateway.port


def wait(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
