"""`twinline serve`: the checks before anything starts, what is handed to the gateway, and the announcement."""

from __future__ import annotations

import http.server
import json
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from twinline.cli import main
from twinline.cli.serve import Announcement, ready_text

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA))
    return path


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of the gateway's `run`, which returns 0 at once."""
    seen: list[tuple[Any, ...]] = []
    gateway = types.ModuleType("twinline.gateway.serve")
    gateway.run = lambda *args: seen.append(args) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "twinline.gateway.serve", gateway)
    return seen


def test_options_given_reach_the_gateway_and_others_do_not(
    folder: Path, free_port: int, calls: list[tuple[Any, ...]]
) -> None:
    port = str(free_port)
    given = ["--dtype", "float32", "--kv-tokens", "4096", "--strict-ops", "--log-level", "error"]
    assert main(["serve", str(folder), "--port", port, *given]) == 0
    options = {"dtype": "float32", "kv_tokens": 4096, "strict_ops": True}
    assert calls == [(folder.resolve(), "my-model", "127.0.0.1", free_port, options, "error")]


def test_the_name_can_be_chosen(folder: Path, free_port: int, calls: list[tuple[Any, ...]]) -> None:
    assert main(["serve", str(folder), "--name", "r1", "--port", str(free_port)]) == 0
    assert calls[0][1] == "r1"
    assert calls[0][4] == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "no model folder"),
        (lambda p: p.write_text(""), "no model folder"),
        (lambda p: p.mkdir(), "no config.json"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{")), "not a JSON object"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text('{"architectures": ["X"]}')), "'X'] is not supported"),
    ],
)
def test_a_folder_that_cannot_be_a_model_is_refused(
    make: Any, words: str, tmp_path: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "model")
    assert main(["serve", str(tmp_path / "model")]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not calls


def test_a_port_in_use_is_refused(folder: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 1
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert not calls


def test_readiness_is_announced_once_health_says_so() -> None:
    asked: list[str] = []

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) == 1 else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "ok", "lines": [{"device": "cpu", "dtype": "bfloat16"}]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    heard, healths = threading.Event(), []
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Announcement("127.0.0.1", server.server_port, lambda health: (healths.append(health), heard.set())):
            assert heard.wait(10)
        server.shutdown()
    assert asked == ["/health", "/health"]
    args = types.SimpleNamespace(host="0.0.0.0", port=8000, device=None, dtype="auto")
    text = ready_text(args, "m", "m", healths[0])  # type: ignore[arg-type]
    assert text.startswith("m on cpu, bfloat16 is ready at http://127.0.0.1:8000/v1\n")
    assert text.splitlines()[1].startswith("  curl http://127.0.0.1:8000/v1/chat/completions")
