"""`twinline bench serve`: what it sends and what it prints."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.scripted_server import Script, serving

from twinline.cli import main
from twinline.cli.client import NoServer, Server


def bench(url: str, *options: str) -> int:
    return main(["bench", "serve", "--url", url, "--requests", "4", *options])


def test_json_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    limits = ["--ttft-limit-ms", "60000", "--itl-limit-ms", "60000"]
    with serving(Script(gap=0.01)) as server:
        assert bench(server.url, "--json", "--output", str(file), "--concurrency", "2", "--warmup", "2", *limits) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(file.read_text())
    report, settings = data["report"], data["settings"]
    assert (report["requests"], report["completed"], report["errors"]) == (4, 4, {})
    assert report["goodput_share"] == 1
    assert report["ttft_ms"]["count"] == 4
    assert (settings["model"], settings["concurrency"], settings["rate"]) == ("m", 2, None)
    assert "api_key" not in settings
    assert len(server.bodies) == 6


def test_a_server_that_is_still_starting_is_asked_for_its_model_when_it_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Server.only_model
    early = iter([NoServer("no server answers yet")] * 2)

    def only_model(server: Server) -> str:
        for error in early:
            raise error
        return asked(server)

    monkeypatch.setattr(Server, "only_model", only_model)
    with serving(Script()) as server:
        assert bench(server.url, "--wait", "20") == 0
        assert "4 of 4" in capsys.readouterr().out
        early = iter([NoServer("no server answers yet")])
        assert bench(server.url) == 1  # nobody said that it should wait


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(usage=False)) as server:
        assert bench(server.url, "--rate", "200", "--ttft-limit-ms", "60000") == 0
    out = capsys.readouterr().out
    for words in ("open loop, 200 requests/s", "time to first token", "p99", "4 of 4", "sent late by", "100.0% of all"):
        assert words in out
    assert "counted from chunks" in out


def test_failures_are_shown_and_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(), Script(status=429), Script()) as server:
        assert bench(server.url) == 1
    assert "failed: 1 x http 429: scripted refusal" in capsys.readouterr().out


def test_a_failing_warm_up_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(status=400)) as server:
        assert bench(server.url) == 1
        assert len(server.bodies) == 1
    assert "warm-up request" in capsys.readouterr().err


def test_prompts_are_reproducible_and_unlike(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--token-ids", "--vocab", "50", "--prompt-tokens", "7", "--output-tokens", "9", "--concurrency", "1"]
    with serving() as server:
        assert bench(server.url, *options) == 0
        assert bench(server.url, *options, "--respect-eos") == 0
    first, second = server.bodies[:5], server.bodies[5:]
    assert [b["prompt"] for b in first] == [b["prompt"] for b in second]
    assert len({tuple(b["prompt"]) for b in first}) == 5
    assert all(len(b["prompt"]) == 7 and max(b["prompt"]) < 50 and b["max_tokens"] == 9 for b in first)
    assert all(b["ignore_eos"] is True and b["stream_options"] == {"include_usage": True} for b in first)
    assert not any("ignore_eos" in b for b in second)


def test_prompts_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "hi"}\n\n{"messages": [{"role": "user", "content": "yo"}], "max_tokens": 5}\n')
    with serving() as server:
        arguments = ["--endpoint", "chat", "--prompts", str(file), "--warmup", "0", "--concurrency", "1"]
        assert main(["bench", "serve", "--url", server.url, *arguments]) == 0
    assert [b["messages"][0]["content"] for b in server.bodies] == ["hi", "yo"]
    assert [b["max_tokens"] for b in server.bodies] == [64, 5]


@pytest.mark.parametrize(
    ("line", "endpoint", "words"),
    [
        ("{", "chat", "not JSON"),
        ('{"messages": []}', "completions", "text or token ids"),
        ('{"prompt": [1, 2]}', "chat", "takes no token ids"),
        ("[]", "chat", "not an object"),
        ("", "chat", "has no prompts"),
    ],
)
def test_a_bad_prompts_file_is_refused(
    line: str, endpoint: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    arguments = ["--model", "m", "--endpoint", endpoint, "--prompts", str(file)]
    assert main(["bench", "serve", *arguments]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("load", [["--concurrency", "2"], ["--rate", "2"]])
def test_an_interrupted_run_reports_what_it_has(load: list[str]) -> None:
    """The first Ctrl-C ends it: two answers are whole, the others hang or have not been sent."""
    with serving(Script(), Script(), Script(first=600.0)) as server:
        command = [sys.executable, "-m", "twinline.cli", "bench", "serve", "--url", server.url, "--requests", "40"]
        with subprocess.Popen([*command, *load, "--warmup", "0"], stdout=subprocess.PIPE, text=True) as run:
            end = time.monotonic() + 60
            while len(server.bodies) < 4:
                assert time.monotonic() < end
                time.sleep(0.01)
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert re.search(r"\b[12] of 40\b", out) and re.search(r"3[89] x interrupted", out) and "time to first token" in out
