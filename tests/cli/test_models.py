"""`twinline models`: a server's list, or the embedded folder's facts."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import pytest
from tests.cli.scripted_server import serving

from twinline.cli import folder, main, models


def write_safetensors(file: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Tensors as name: (dtype, shape, bytes); zeros."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["DeepseekV3ForCausalLM"]}')
    write_safetensors(path / "model-1.safetensors", {"a.weight": ("BF16", [10, 20], 400)})
    quantized = {"b.weight": ("F8_E4M3", [4, 4], 16), "b.weight_scale_inv": ("F32", [1, 1], 4)}
    write_safetensors(path / "model-2.safetensors", quantized)
    return path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """A default URL at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    monkeypatch.setattr(models, "DEFAULT_URL", url)
    monkeypatch.delenv("TWINLINE_URL", raising=False)
    return url


def test_what_a_server_serves(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(models=["r1", "v3"]) as server:
        assert main(["models", "--url", server.url.removesuffix("/v1")]) == 0
        out = capsys.readouterr().out
        assert main(["models", "--url", server.url, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
    assert "r1" in out
    assert "4,096" in out
    assert [m["id"] for m in data["models"]] == ["r1", "v3"]
    assert data["url"] == server.url


def test_the_embedded_folder_when_no_server_answers(
    tiny: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "embedded", lambda: tiny)
    assert main(["models", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["embedded"]
    assert found["architecture"] == "DeepseekV3ForCausalLM"
    assert (found["parameters"], found["tensor_bytes"]) == (216, 420)
    assert main(["models"]) == 0
    assert "DeepseekV3ForCausalLM         216           420" in capsys.readouterr().out


def test_a_named_server_that_does_not_answer_is_an_error(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--url", nowhere]) == 1
    assert f"no server answers at {nowhere}" in capsys.readouterr().err


def test_a_broken_tensor_file_is_named(tiny: Path) -> None:
    (tiny / "model-3.safetensors").write_bytes(b"\xff" * 40)
    for header in (b"\xff" * 32, b"[1]", b"[" * 100_000):
        (tiny / "model-3.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(folder.CliError, match=r"model-3\.safetensors is not a safetensors file"):
            folder.read_folder(tiny)
    write_safetensors(tiny / "model-3.safetensors", {"a": ("F32", None, 0)})  # type: ignore[dict-item]
    with pytest.raises(folder.CliError, match="is not a model folder that can be read"):
        folder.read_folder(tiny)
