"""Verbs that meet a model of vectors: what they make of it, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engine import embedders

from twinline.cli import main
from twinline.cli.serve import ready_text
from twinline.facts.pooling import read_pooling


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> embedders.Embedder:
    made = embedders.save(tmp_path_factory.mktemp("embedder"))
    embedders.tokenizer(made.folder)
    return made


def test_convert_keeps_the_pooling_and_measures_cosines(
    of: embedders.Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "int8"
    assert main(["convert", str(of.folder), str(new), "--to", "int8", "--tokens", "600", "--json"]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["vectors"] == 3 and quality["positions"] == 768
    assert 0.98 < quality["cosine_least"] <= quality["cosine"] < 1 - 1e-6
    assert read_pooling(new) == read_pooling(of.folder)
    assert main(["convert", str(new), str(tmp_path / "again"), "--to", "int8", "--tokens", "100"]) == 0
    said = capsys.readouterr().out
    assert "cosine of a text's two vectors, mean  1.000000" in said and "have the source's own numbers" in said


def test_convert_follows_no_path_out_of_the_folder(
    of: embedders.Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in of.folder.iterdir():
        (source / file.name).symlink_to(file)
    (source / "modules.json").unlink()
    listed = json.loads((of.folder / "modules.json").read_text())
    listed[1]["path"] = "../elsewhere"
    (source / "modules.json").write_text(json.dumps(listed))
    assert main(["convert", str(source), str(tmp_path / "new"), "--to", "int8"]) == 1
    assert "'../elsewhere' leads out of the folder" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "new").exists()


def test_the_ladder_wants_a_model_that_generates(of: embedders.Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--device", "cpu", "--model", str(of.folder)]) == 1
    assert "gives vectors, and the ladder asks a model for tokens" in capsys.readouterr().err


def test_serve_shows_a_line_that_works() -> None:
    said = ready_text("http://x", "m", None, {"embeds": True})
    assert "curl http://x/v1/embeddings" in said and '"input"' in said and "messages" not in said
    assert "curl http://x/v1/chat/completions" in ready_text("http://x", "m", None, {})


def test_a_backbone_weighs_no_head(of: embedders.Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((of.folder / "config.json").read_text())
    told = config | {"architectures": ["Qwen3Model"], "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "model.safetensors").symlink_to(of.folder / "model.safetensors")
    main(["fit", str(tmp_path), "--chip", "cpu-zen4", "--json"])
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["weight_bytes"] == model["folder_bytes"] > 400_000
