"""A log that nobody reads: what it costs is lines, never the program's time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from twinline.cli import log_writer
from twinline.cli.log_writer import LogWriter, Writer


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def logger_to(descriptor: int) -> tuple[logging.Logger, LogWriter]:
    writer = LogWriter(descriptor)
    logger = logging.Logger("alone")
    logger.addHandler(writer)
    return logger, writer


def read_on(descriptor: int, text: str) -> str:
    """What comes until `text` has."""
    got = b""
    while text.encode() not in got:
        got += os.read(descriptor, 1 << 16)
    return got.decode()


def test_lines_come_in_order_whoever_logs_them(pipe: tuple[int, int]) -> None:
    logger, writer = logger_to(pipe[1])

    def say(who: int) -> None:
        for number in range(100):
            logger.warning("%d says %d", who, number)

    threads = [threading.Thread(target=say, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    lines = os.read(pipe[0], 1 << 16).decode().splitlines()  # flushed: they are there without a wait
    for who in range(4):
        assert [line for line in lines if line.startswith(f"{who} ")] == [f"{who} says {n}" for n in range(100)]
    assert len(lines) == 400


def test_a_reader_that_stops_costs_lines_and_no_time(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MOST_LINES", 100)
    monkeypatch.setattr(log_writer, "LAST_SECONDS", 0.05)
    logger, writer = logger_to(pipe[1])
    line = "x" * 1000
    for number in range(2000):  # 2 MB, of which the pipe takes 64 KB: to write them here would never end
        logger.warning("%d %s", number, line)
    writer.flush()  # gives up
    monkeypatch.setattr(log_writer, "LAST_SECONDS", 60.0)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on, pipe[0], "it goes on\n")  # the reader is back
        writer.flush()
        logger.warning("it goes on")
        lines = reading.result().splitlines()
    numbers = [int(said.split()[0]) for said in lines if said.endswith("x")]
    missing = [int(said[1:].split()[0]) for said in lines if "lines are missing here" in said]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + sum(missing) == 2000
    assert len(numbers) < 400  # what the pipe held and what waited, and again what waited when the reader was back


def test_a_stderr_that_others_made_not_to_wait_gets_all(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    logger, _ = logger_to(pipe[1])
    for number in range(300):
        logger.warning("%d %s", number, "y" * 1000)
    logger.warning("the end")
    lines = read_on(pipe[0], "the end\n").splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [str(number) for number in range(300)]


def test_a_closed_stderr_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    logger, writer = logger_to(write)
    logger.warning("nobody hears")
    writer.flush()
    logger.warning("nor this")
    writer.flush()
    os.close(write)


def test_a_call_that_does_not_fit_its_text_breaks_nothing(
    pipe: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    logger, _ = logger_to(pipe[1])
    logger.warning("%d", "seven")
    logger.warning("next")
    assert read_on(pipe[0], "\n") == "next\n"
    assert "Logging error" in capsys.readouterr().err


def test_lines_that_nobody_read_are_told_though_no_more_come(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MOST_LINES", 100)
    writer = Writer(pipe[1])
    for _ in range(400):
        writer.put("x" * 1000)
    lines = read_on(pipe[0], "missing here: nobody read them)\n").splitlines()
    assert len(lines) - 1 + int(lines[-1][1:].split()[0]) == 400


def test_a_fleet_is_kept_though_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """Its pipe is full from the first line on; the gateway comes up, `ps` is answered, SIGTERM ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "f.yaml"
    file.write_text(
        f"gateway: {{port: {port}}}\nlines:\n  a: {{engine: simulated, model: tiny-r1, weights: embedded}}\n"
    )
    command = [sys.executable, "-m", "twinline.cli"]
    environment = os.environ | {"TWINLINE_HOME": str(tmp_path / "home")}
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x")
        os.set_blocking(write, True)
        with subprocess.Popen([*command, "up", str(file)], stdout=write, env=environment) as control:
            try:
                until = time.monotonic() + 60
                shown = ""
                while "serving" not in shown:
                    assert time.monotonic() < until, shown
                    time.sleep(0.5)
                    ps = subprocess.run([*command, "ps", "f"], env=environment, capture_output=True, text=True)
                    shown = ps.stdout
            finally:
                control.terminate()
                try:
                    assert control.wait(30) == 0
                finally:
                    control.kill()
    finally:
        os.close(read)
        os.close(write)


def test_a_served_model_answers_though_nobody_reads_its_log() -> None:
    """Refusals fill the pipe twice over."""
    command = [sys.executable, "-m", "twinline.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline().decode()
            url = line[line.index("http") :].split()[0]
            body = json.dumps({"model": "nobody-" + "x" * 300, "prompt": "1+1="}).encode()
            wrong = urllib.request.Request(f"{url}/completions", body, {"content-type": "application/json"})
            began = time.monotonic()
            for _ in range(300):
                with pytest.raises(urllib.error.HTTPError) as caught:
                    urllib.request.urlopen(wrong, timeout=60)
                assert caught.value.code == 404
                caught.value.close()
            assert time.monotonic() - began < 50
        finally:
            server.terminate()
            assert server.stderr is not None
            log = server.stderr.read()
    assert log.count(b"status=404") == 300
    assert server.returncode == 0
