"""`twinline serve`: the checks before anything starts, what is handed to the gateway, and the announcement."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinline.cli import build_parser, main
from twinline.cli.parser import CliError
from twinline.cli.serve import keys_needed, worker_flags
from twinline.gateway.serve import Serving
from twinline.lines.native import NativeLine

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
def served(monkeypatch: pytest.MonkeyPatch) -> list[Serving]:
    """What the gateway was asked to serve; it is ready at once and ends at once."""
    seen: list[Serving] = []

    async def serve(what: Serving, line: NativeLine, ready: Callable[[str], None]) -> None:
        line.facts = {"device": "cpu", "dtype": "bfloat16"}
        seen.append(what)
        ready("http://127.0.0.1:8000")

    monkeypatch.setattr("twinline.gateway.serve.serve", serve)

    async def begin(line: NativeLine) -> None:
        pass

    monkeypatch.setattr(NativeLine, "begin", begin)
    return seen


def test_a_folder_is_served_under_its_name_and_announced(
    folder: Path, free_port: int, served: list[Serving], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), "--port", str(free_port)]) == 0
    assert served == [Serving(folder.resolve(), "my-model", "127.0.0.1", free_port)]
    first, second = capfd.readouterr().out.splitlines()
    assert first == "my-model on cpu, bfloat16 is ready at http://127.0.0.1:8000/v1"
    assert second.startswith("  curl http://127.0.0.1:8000/v1/chat/completions")
    assert json.loads(shlex.split(second)[-1])["model"] == "my-model"


def test_without_a_folder_the_demonstration_model_is_served_and_called_so(
    folder: Path, served: list[Serving], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("twinline.cli.serve.embedded", lambda: folder)
    assert main(["serve", "--name", "r1", "--port", "0"]) == 0
    assert (served[0].name, served[0].label) == ("r1", "demonstration model")
    assert capfd.readouterr().out.startswith("r1 (demonstration model) on cpu, bfloat16 is ready")


def test_only_options_that_were_given_reach_the_engine() -> None:
    given = ["--dtype", "float32", "--kv-tokens", "4096", "--strict-ops", "--log-level", "error"]
    args = build_parser("serve").parse_args(["serve", *given])
    assert worker_flags(args) == ["--dtype", "float32", "--kv-tokens", "4096", "--strict-ops", "--log-level", "error"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "no model folder"),
        (lambda p: p.write_text(""), "is a file; wanted is a Hugging Face model folder"),
        (lambda p: p.mkdir(), "no config.json"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{")), "not a JSON object"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text('{"architectures": ["X"]}')), "'X'] is not supported"),
    ],
)
def test_a_folder_that_cannot_be_a_model_is_refused(
    make: Any, words: str, tmp_path: Path, served: list[Serving], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "model")
    assert main(["serve", str(tmp_path / "model")]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not served


def test_a_form_of_weights_that_is_none_is_refused_before_anything_starts(
    folder: Path, served: list[Serving], capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (["--weights", "int5"], ["--head-weights", "int4:7"], ["--weights", "float32", "--dtype", "bfloat16"]):
        assert main(["serve", str(folder), *given]) == 1
        err = capsys.readouterr().err
        assert "weights" in err and err.count("\n") == 1
    assert not served


def test_a_port_in_use_is_refused(folder: Path, served: list[Serving], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 1
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert not served


@pytest.mark.parametrize(
    ("host", "asked", "needed"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("127.0.0.1", "required", True),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("0.0.0.0", "required", True),
    ],
)
def test_keys_are_needed_wherever_others_can_come(host: str, asked: str | None, needed: bool) -> None:
    assert keys_needed(host, asked) is needed


def test_a_door_open_to_everybody_is_refused() -> None:
    with pytest.raises(CliError, match="lets everybody in"):
        keys_needed("0.0.0.0", "off")
