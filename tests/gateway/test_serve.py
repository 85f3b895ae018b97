"""`serve` as a process: it opens after the line is ready and ends cleanly, taking the line with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import tokenizers
from tests.gateway.harness import MODEL

from twinline.gateway.listening import bound, url_of
from twinline.gateway.served import Defaults, ModelText

WORKER = Path(__file__).parents[1] / "lines" / "worker_double.py"
PROGRAM = """
import logging, os, sys, uvloop
from pathlib import Path
from twinline.gateway import listening
from twinline.gateway.serve import Serving, serve
from twinline.lines import keeper
from twinline.lines.native import NativeLine
logging.basicConfig(level=logging.INFO)
listening.DRAIN_SECONDS = float(os.environ.get("DRAIN_SECONDS", listening.DRAIN_SECONDS))
keeper.FIRST_DELAY_SECONDS = float(os.environ.get("FIRST_DELAY_SECONDS", keeper.FIRST_DELAY_SECONDS))
folder, worker = Path(sys.argv[1]), sys.argv[2]
line = NativeLine(folder, "tiny-r1", program=(sys.executable, worker))
async def main():
    ready = lambda url: print(url, line.pid, flush=True)
    await serve(Serving(folder, "tiny-r1", port=int(sys.argv[3]), keys="KEYS" in os.environ), line, ready)
try:
    uvloop.run(main())
except Exception as error:
    sys.exit(str(error))
print("ended", flush=True)
"""


@contextmanager
def serving(folder: Path, fault: str = "", port: int = 0, **more: str) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WORKER_FAULT": fault, **more}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(WORKER), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_and_ends_with_its_line(tiny_folder: Path, number: signal.Signals) -> None:
    with serving(tiny_folder) as process:
        assert process.stdout is not None
        url, pid = process.stdout.readline().split()
        with httpx.Client(base_url=url, trust_env=False) as client:
            entry = client.get(f"/v1/models/{MODEL}").json()
            assert (entry["id"], entry["max_model_len"]) == (MODEL, 512)
            answer = client.post("/v1/completions", json={"model": MODEL, "prompt": [1023], "max_tokens": 3})
            assert answer.status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "ended\n"), err
        assert "loading weights" in err and "Traceback" not in err
        assert gone(int(pid))


@pytest.mark.parametrize(("signals", "drain"), [(1, "0.2"), (2, "60")])
def test_streams_that_outlast_the_end_are_told(tiny_folder: Path, signals: int, drain: str) -> None:
    """One signal lets streams go on for a while, a second one ends them now."""
    with serving(tiny_folder, "hang", DRAIN_SECONDS=drain) as process, ThreadPoolExecutor(3) as pool:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        begun = threading.Semaphore(0)

        def ask(stream: bool) -> str:
            body = {"model": MODEL, "prompt": [1023], "stream": stream}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, trust_env=False, timeout=60) as response:
                assert response.status_code == (200 if stream else 503)
                parts = []
                for part in response.iter_text():
                    parts.append(part)
                    begun.release()
                return "".join(parts)

        answers = [pool.submit(ask, stream) for stream in (True, True, False)]
        for _ in range(2):
            assert begun.acquire(timeout=60)
        running = 'twinline_gateway_requests_running{endpoint="completions"} 3.0'
        while running not in httpx.get(f"{url}/metrics", trust_env=False).text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            refused = time.monotonic() + 60
            with pytest.raises(httpx.ConnectError):  # so that the first was heeded
                while time.monotonic() < refused:
                    httpx.get(f"{url}/health", trust_env=False)
            process.send_signal(signal.SIGTERM)
        for answer in answers:
            told = answer.result(60).removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: ")
            assert json.loads(told)["error"]["code"] == "server_stopping"
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "ended\n")
        assert "Traceback" not in err


def test_a_signal_while_the_line_starts(tiny_folder: Path) -> None:
    with serving(tiny_folder, "slow") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "loading weights" in line:
                break
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "ended\n")


def test_a_line_that_does_not_start_says_why(tiny_folder: Path) -> None:
    with serving(tiny_folder, "error") as process:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1 and not out
        assert err.splitlines()[-1].endswith("cannot start: the folder has no config.json")


def test_a_dead_line_is_told_and_started_again(tiny_folder: Path) -> None:
    with serving(tiny_folder, FIRST_DELAY_SECONDS="6") as process:
        assert process.stdout is not None
        url, pid = process.stdout.readline().split()
        os.kill(int(pid), signal.SIGKILL)
        with httpx.Client(base_url=url, trust_env=False) as client:
            limit = time.monotonic() + 60
            while (health := client.get("/health")).status_code == 200:
                assert time.monotonic() < limit
            assert "its process ended with code -9" in health.text
            response = client.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "its process ended with code -9" in response.json()["error"]["message"]
            limit = time.monotonic() + 60
            while client.get("/health").status_code != 200:
                assert time.monotonic() < limit
                time.sleep(0.02)
            assert client.post("/v1/completions", json={"model": MODEL, "prompt": "x"}).status_code == 200


def test_a_line_that_cannot_be_started_again_ends_the_server(tiny_folder: Path, tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("")
    quick = {"WORKER_FAULT_FILE": str(faults), "FIRST_DELAY_SECONDS": "0.05"}
    with serving(tiny_folder, **quick) as process:
        assert process.stdout is not None
        pid = process.stdout.readline().split()[1]
        faults.write_text("error")
        os.kill(int(pid), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1 and not out
        assert "gave up on line native:tiny-r1 after 3 failed starts in a row" in err.splitlines()[-1]
        assert err.splitlines()[-1].endswith("the folder has no config.json")


def test_a_taken_port_and_a_folder_that_is_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serving(tmp_path, port=taken.getsockname()[1]) as process:
        assert "in use" in process.communicate(timeout=60)[1]
    with serving(tmp_path) as process:
        assert "tokenizer_config.json" in process.communicate(timeout=60)[1]
        assert process.returncode == 1


def test_a_bound_port_refuses_until_it_is_served() -> None:
    with bound("127.0.0.1", 0) as listener, pytest.raises(httpx.ConnectError):
        httpx.get(url_of(listener), trust_env=False)
    with bound("0.0.0.0", 0) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")


def test_defaults_come_from_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    assert ModelText.load(tiny_folder).defaults == Defaults(1.0, 1.0, 0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True, "min_p": 0.1}
    config |= {"repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert ModelText.load(tmp_path).defaults == Defaults(0.6, 0.95, 20, 0.1, 1.05)
    assert Defaults.of({"do_sample": False, "temperature": 0.6}) == Defaults(0.0, 1.0, 0)
    assert Defaults.of({"temperature": None, "top_p": 7, "top_k": True}) == Defaults(1.0, 1.0, 0)


def test_the_unknown_token_is_no_tag_and_no_mark(tmp_path: Path) -> None:
    """A vocabulary of whole words has one id for any word that it lacks, and so for every tag."""
    tags = ("<response>", "</response>", "<think>", "</think>")
    for name, known in (("with", tags), ("without", ())):
        words = {word: number for number, word in enumerate(("[UNK]", "hi", *known))}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(["[UNK]", *known])
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
    text = ModelText.load(tmp_path / "with")
    assert text.answer_tags and text.marks == frozenset(text.tokenizer.encode("<think></think>", special=False))
    text = ModelText.load(tmp_path / "without")
    assert text.tokenizer.encode("<response>", special=False) == [0]
    assert not text.answer_tags and not text.marks and not text.call_marks


def test_a_database_that_hangs_while_it_is_opened_holds_up_no_end(tiny_folder: Path) -> None:
    pytest.importorskip("psycopg")
    asked = threading.Event()

    def take(server: socket.socket) -> None:
        """Greets as PostgreSQL does and answers no question."""
        with server.accept()[0] as wire, contextlib.suppress(OSError):
            greeting = wire.recv(1024)
            if greeting[4:] == struct.pack("!I", 80877103):  # whether it speaks TLS
                wire.sendall(b"N")
                wire.recv(1024)
            wire.sendall(struct.pack("!cIIcIIIcIc", b"R", 8, 0, b"K", 12, 1, 1, b"Z", 5, b"I"))
            while wire.recv(1024):
                asked.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, args=(server,), daemon=True).start()
        url = f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/d"
        with serving(tiny_folder, KEYS="1", TWINLINE_DATABASE_URL=url) as process:
            assert asked.wait(60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
