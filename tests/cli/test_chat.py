"""`twinline chat` against a scripted endpoint: one answer, a conversation, reasoning, refusals."""

from __future__ import annotations

import io
import os
import pty
import shlex
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.cli.scripted_server import Script, serving

from twinline.cli import chat, main
from twinline.cli.client import Server

R1 = Script(pieces=(("thinking", "\n17+25"), ("thinking", " is 42"), ("text", "\n\n42"), ("text", ".")))


def test_one_question_one_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(R1) as server:
        options = ["--url", server.url, "--system", "Be brief.", "--temperature", "0", "--max-tokens", "50"]
        assert main(["chat", *options, "What", "is", "17+25?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "42.\n"
    assert captured.err == "17+25 is 42\n"
    (body,) = server.bodies
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17+25?"}
    assert body["messages"] == [system, user]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("m", 0, 50, True)


def test_an_answer_that_was_cut_off_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(finish="length"), Script()) as server:
        for said in ("(cut off: ", ""):
            assert main(["chat", "--url", server.url, "hi"]) == 0
            told = capsys.readouterr()
            assert told.out == "abc\n" and told.err.startswith(said) and bool(told.err) == bool(said)


def test_reasoning_is_dimmed_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with serving(R1) as server:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(["chat", "--url", server.url, "x"]) == 0
        assert capsys.readouterr().out == "\x1b[2m17+25 is 42\x1b[0m\n42.\n"
        assert main(["chat", "--url", server.url, "--no-thinking-display", "x"]) == 0
        assert capsys.readouterr().out == "42.\n"


def test_an_answer_tells_the_terminal_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a pipe has it as it is."""
    clipboard = "\x1b]52;c;cm0gLXJm\x07"
    told = Script(pieces=(("thinking", f"a{clipboard}"), ("text", f"b{clipboard}"), ("text", "\x9b2J\t\u3000好\r\n")))
    with serving(told) as server:
        assert main(["chat", "--url", server.url, "x"]) == 0
        assert capsys.readouterr().out == f"b{clipboard}\x9b2J\t\u3000好\r\n\n"
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("NO_COLOR", "1")
        assert main(["chat", "--url", server.url, "x"]) == 0
        shown = r"\x1b]52;c;cm0gLXJm\x07"
        assert capsys.readouterr().out == f"a{shown}\nb{shown}\\x9b2J\t\u3000好\n\n"


def test_a_conversation_keeps_answers_without_reasoning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n/clear\n/what\nthree\n/exit\nfour\n"))
    with serving(R1) as server:
        assert main(["chat", "--url", server.url]) == 0
    assert [[m["content"] for m in body["messages"]] for body in server.bodies] == [
        ["one"],
        ["one", "42.", "two"],
        ["three"],
    ]
    assert "/clear forgets" in capsys.readouterr().out


def test_ctrl_c_ends_the_answer_and_not_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = chat.pieces

    def interrupted(events):  # type: ignore[no-untyped-def]
        for number, piece in enumerate(real(events)):
            if number == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(chat, "pieces", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    with serving() as server:
        assert main(["chat", "--url", server.url]) == 0
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["one", "a", "two"]
    assert "(stopped)" in capsys.readouterr().err


def test_lines_that_are_pasted_are_one_question() -> None:
    pytest.importorskip("readline")
    ours, theirs = pty.openpty()
    with serving(Script()) as server:
        command = [sys.executable, "-m", "twinline.cli", "chat", "--url", server.url]
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"}
        )
        os.close(theirs)
        try:
            seen = b""
            while not seen.endswith(b"> "):
                seen += os.read(ours, 1024)
            os.write(ours, b"\x1b[200~one\ntwo\x1b[201~\r")
            while b"abc" not in seen or not seen.endswith(b"> "):
                seen += os.read(ours, 1024)
            os.write(ours, b"\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
    assert [body["messages"][-1]["content"] for body in server.bodies] == ["one\ntwo"]


def test_a_model_that_is_not_there_and_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(status=404)) as server:
        server.models = ["tiny-r1", "b"]
        assert main(["chat", "--url", server.url, "--model", "tiny-r", "hi"]) == 1
        assert capsys.readouterr().err.endswith("answered 404: scripted refusal It serves tiny-r1, b.\n")
        assert main(["chat", "--url", server.url, "--model", "b", "hi"]) == 1
        assert capsys.readouterr().err.endswith("answered 404: scripted refusal\n")


def test_streams_that_are_closed() -> None:
    with serving(Script()) as server:
        for question in ("hi", ""):  # the latter reads its standard input
            command = f"{shlex.quote(sys.executable)} -m twinline.cli chat --url {server.url} {question} <&- >&-"
            done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (0, "")


def test_refusals_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert main(["chat", "--url", f"127.0.0.1:{port}", "x"]) == 1
    assert f"no server answers at http://127.0.0.1:{port}/v1" in capsys.readouterr().err
    with serving(Script(status=429)) as server:
        assert main(["chat", "--url", server.url, "x"]) == 1
    assert "answered 429: scripted refusal" in capsys.readouterr().err
    with serving(Script(error_midway="the card died")) as server:
        assert main(["chat", "--url", server.url, "x"]) == 1
    assert capsys.readouterr().err.endswith("broke off its answer: the card died\n")
    with serving(models=["a", "b"]) as server:
        assert main(["chat", "--url", server.url, "x"]) == 2
    assert "choose with --model: a, b" in capsys.readouterr().err


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TWINLINE_API_KEY", "k-1")
    with serving() as server:
        assert main(["chat", "--url", server.url, "x"]) == 0
    assert server.headers[0]["Authorization"] == "Bearer k-1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_sent_where_a_server_points(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as elsewhere:

        class Pointing(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("location", f"{elsewhere.url}/models")
                self.send_header("content-length", "0")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *told: object) -> None: ...

        with HTTPServer(("127.0.0.1", 0), Pointing) as pointing:
            thread = threading.Thread(target=pointing.serve_forever, daemon=True)
            thread.start()
            url = f"http://127.0.0.1:{pointing.server_port}/v1"
            for verb in (["models"], ["chat", "--model", "m", "x"]):
                assert main([*verb, "--url", url, "--api-key", "k-1"]) == 1
                assert f"answered {status}" in capsys.readouterr().err
            pointing.shutdown()
            thread.join()
    assert not elsewhere.headers


def test_events_are_read_as_they_arrive() -> None:
    with serving(Script(gap=0.01)) as server:
        events = Server(server.url).stream("/completions", {"prompt": "x"})
        assert next(events)["choices"][0]["text"] == "a"
        events.close()  # type: ignore[attr-defined]
