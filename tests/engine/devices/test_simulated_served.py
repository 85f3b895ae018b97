"""The simulated chip behind real processes: the CPU's answers over HTTP, and the chip killed under a running stream."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.engine.spawn import ENVIRONMENT as WORKER_ENVIRONMENT
from tests.engine.spawn import Spawned
from tests.engine.tiny import write_checkpoint
from tests.serving import ENVIRONMENT, Served, serving, until

from twinline.cli.serve import ready_text
from twinline.engine.devices.simulated.control import VARIABLE

ENDLESS = {"prompt": "17+25=", "temperature": 0, "ignore_eos": True, "max_tokens": 150, "stream": True}
QUESTIONS = ("What is 17+25?", "42乘6等于多少？")


def answers(server: Served) -> list[Any]:
    chats = [server.chat(question, temperature=0).json()["choices"][0]["message"] for question in QUESTIONS]
    return [*chats, server.complete([5, 6, 7], temperature=0, max_tokens=64, ignore_eos=True).json()["choices"]]


def text(server: Served, begun: threading.Semaphore | None = None) -> str:
    """The whole of a stream, however long it pauses."""
    with server.client.stream("POST", "/v1/completions", json=ENDLESS | {"model": "tiny-r1"}) as response:
        found = []
        for line in response.iter_lines():
            if line:
                found.append(line.removeprefix("data: "))
                if begun is not None:
                    begun.release()
    assert found.pop() == "[DONE]", found
    return "".join(json.loads(event)["choices"][0]["text"] for event in found)


def test_served_on_the_simulated_chip_and_killed_under_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are the CPU's. When the chip is lost, its line ends and is started again as soon as the chip is back; the
    stream goes on where it was, and the door stays open meanwhile and says why it cannot serve."""
    control = tmp_path / "control"
    monkeypatch.setitem(ENVIRONMENT, VARIABLE, str(control))
    with serving("--device", "simchip") as chip:
        with serving("--device", "cpu") as cpu:
            assert answers(chip) == answers(cpu)
        whole, begun, found = text(chip), threading.Semaphore(0), []
        stream = threading.Thread(target=lambda: found.append(text(chip, begun)))
        stream.start()
        for _ in range(10):
            assert begun.acquire(timeout=30)
        control.write_text("lost")
        until(lambda: chip.client.get("/health").status_code == 503, 10)

        def told_why() -> bool:
            refused = chip.chat(QUESTIONS[0])
            assert refused.status_code == 503
            return "device lost: simchip:clean (simulated)" in refused.json()["error"]["message"]

        until(told_why, 10)  # at first only that nobody is at its address any more
        control.write_text("ok")
        stream.join(60)
        assert found == [whole]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_a_worker_whose_chip_dies_says_so_within_two_seconds_and_ends(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "control"
    monkeypatch.setitem(WORKER_ENVIRONMENT, VARIABLE, str(control))
    with Spawned(folder, "--device", "simchip:no-fp8", "--kv-tokens", "16384") as worker:
        assert worker.ready["simulated"] is True
        assert worker.ready["device"] == "simchip:no-fp8 (simulated)"
        said = ready_text("http://x", "tiny", None, worker.ready)
        assert "tiny on simchip:no-fp8 (simulated), float32 is ready" in said
        body = {"prompt": [1, 2, 3], "max_tokens": 16000, "ignore_eos": True, "stream": True, "temperature": 0}
        killed, last = 0.0, ""
        with worker.http.stream("POST", "/v1/completions", json=body, timeout=60) as response:
            for number, line in enumerate(line for line in response.iter_lines() if line):
                if number == 5:
                    control.write_text("0 lost")
                    killed = time.monotonic()
                last = line
        assert time.monotonic() - killed < 2
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "device_lost"
        assert "simchip:no-fp8 (simulated) does not answer any more" in error["message"]
        assert worker.process.wait(10) == 1
        assert "ending: device lost" in "".join(worker.last_words)
    with Spawned(folder, "--device", "simchip", "--kv-tokens", "256") as again:
        assert "is lost (simulated)" in again.ready["error"]  # until the file says otherwise
        assert again.process.wait(10) == 1
