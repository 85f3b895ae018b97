"""The worker as a process: how it starts, what it says when it cannot, and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.engine.spawn import Spawned, wait_for
from tests.engine.tiny import EOS, write_checkpoint

from twinline.engine import worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


def stream_in_background(spawned: Spawned, max_tokens: int) -> tuple[threading.Thread, list[Any]]:
    """A stream that runs when this returns; the list gets its end: its last line, or the error that broke it."""
    found: list[Any] = []

    def read() -> None:
        body = {"prompt": [1, 2, 3], "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
        try:
            with spawned.http.stream("POST", "/v1/completions", json=body, timeout=60) as response:
                found.append([line for line in response.iter_lines() if line][-1])
        except httpx.HTTPError as error:
            found.append(error)

    thread = threading.Thread(target=read)
    with httpx.Client(base_url=spawned.http.base_url, trust_env=False) as client:
        thread.start()
        wait_for(lambda: client.get("/health").json()["running"] == 1)
    return thread, found


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[dict[str, Spawned]]:
    """One for each way to end, all started at once."""
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(Spawned(folder, "--kv-tokens", "16384"))
            for name in ("short", "endless", "orphan")
        }
        started["nowhere"] = stack.enter_context(Spawned(folder / "nowhere"))
        yield started


def test_a_start_that_fails_says_why_in_one_line_and_exits_with_1(workers: dict[str, Spawned]) -> None:
    failed = workers["nowhere"]
    assert "no model folder at" in failed.ready["error"]
    assert failed.process.wait(10) == 1
    assert failed.process.stdout is not None and failed.process.stdout.read() == b""


def test_sigterm_lets_a_short_answer_finish(workers: dict[str, Spawned]) -> None:
    thread, found = stream_in_background(workers["short"], 300)
    workers["short"].process.terminate()
    assert workers["short"].process.wait(15) == 0
    thread.join(5)
    assert found == ["data: [DONE]"]


def test_sigterm_does_not_wait_for_an_endless_one(workers: dict[str, Spawned]) -> None:
    thread, found = stream_in_background(workers["endless"], 16000)
    workers["endless"].process.terminate()
    assert workers["endless"].process.wait(worker.GRACE_SECONDS + 10) == 0
    thread.join(5)
    assert isinstance(found[0], httpx.HTTPError)  # cut off, which a gateway can tell from an end


def test_the_end_of_stdin_ends_it_without_grace(workers: dict[str, Spawned]) -> None:
    thread, found = stream_in_background(workers["orphan"], 16000)
    assert workers["orphan"].process.stdin is not None
    workers["orphan"].process.stdin.close()
    assert workers["orphan"].process.wait(10) == 0
    thread.join(5)
    assert isinstance(found[0], httpx.HTTPError)


def taken_port() -> tuple[socket.socket, int]:
    holder = socket.create_server(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "float8"], "dtype 'float8' is not supported"),
        (["--device", "abacus"], "device 'abacus' is not known"),
        (["--kv-tokens", "16"], "a cache of 16 tokens is too small: at least 32"),
        (["--kv-tokens", str(2**50)], "GiB are free: at most"),
        (["--max-model-len", "20000"], "beyond the model's context of 16384"),
        (["--max-model-len", "-3"], "max_model_len must be at least 2"),
        (["--max-running", "64", "--max-tokens-per-step", "64"], "must exceed max_running"),
        (["--max-running", "0"], "max_running must be at least 1"),
        (["--max-waiting", "0"], "max_waiting 0 must be at least 1"),
        (["--threads", "-1"], "threads must be between 0 (derived) and 1024, not -1"),
        (["--threads", "100000"], "threads must be between"),
        (["--page-size", "-1"], "page_size must be at least 1, or 0 (derived), not -1"),
        (["--page-size", str(2**40)], "the least cache, of 2199023255552 tokens,"),
        (["--port", "70000"], "port must be 0-65535"),
    ],
)
def test_options_that_cannot_hold(
    folder: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker", "--model", str(folder), "--name", "tiny", *flags])
    assert worker.main() == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert message in json.loads(line)["error"]


def test_a_port_that_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    holder, port = taken_port()
    with holder:
        monkeypatch.setattr(sys, "argv", ["worker", "--model", str(folder), "--name", "tiny", "--port", str(port)])
        assert worker.main() == 1
    assert "in use" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(None, 1, {1}), (None, [1, 2], {1, 2}), (3, 1, {3}), ([3, 4], 1, {3, 4}), ({}, 1, {1}), (None, None, set()),
     ([], 1, {1})],
)  # fmt: skip
def test_end_tokens_are_read_from_either_file(tmp_path: Path, generation: Any, config: Any, expected: set[int]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if generation is not None:
        body = generation if isinstance(generation, dict) else {"eos_token_id": generation}
        (tmp_path / "generation_config.json").write_text(json.dumps(body))
    assert worker.end_tokens(tmp_path) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, null]}', "null"])
def test_end_tokens_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json") as caught:
        worker.end_tokens(tmp_path)
    assert "\n" not in str(caught.value)


def test_end_tokens_of_the_test_model(folder: Path) -> None:
    assert worker.end_tokens(folder) == {EOS}


def test_tokens_are_sent_as_they_come() -> None:
    """asyncio turns Nagle's wait off for sockets whose protocol is named; accepted ones take it from their listener."""
    with worker.bound("127.0.0.1", 0) as listener:
        listener.listen()

        async def accept() -> int:
            arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                sock = writer.get_extra_info("socket")
                arrived.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            server = await asyncio.start_server(answer, sock=listener)
            _, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                return await arrived
            finally:
                writer.close()
                server.close()

        assert asyncio.run(accept())
