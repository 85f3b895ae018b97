"""What is said of a path that is no model folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinline.facts.mistaken import no_model_folder, taken_for
from twinline.facts.model_files import find_model
from twinline.facts.models import UnsupportedModel

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_a_gguf_file_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF\3\0\0\0")
    for path in (file, tmp_path):
        assert "a GGUF file, which a fleet's llamacpp line serves" in str(no_model_folder(path))
    with pytest.raises(UnsupportedModel, match=r"cannot be read as a config\.json: .*a GGUF file"):
        find_model(str(file))


def test_other_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"PK\3\4")
    assert "is a file; wanted is a Hugging Face model folder" in str(no_model_folder(tmp_path / "weights.bin"))
    assert str(no_model_folder(tmp_path / "x")).startswith("no model folder at")
    assert str(no_model_folder(tmp_path)).endswith("has no config.json: not a Hugging Face model folder")
    (tmp_path / "config.json").write_text("")  # what is in it is another question
    assert no_model_folder(tmp_path) is None


def test_a_pointer_of_git_lfs_says_how_to_fetch_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(POINTER)
    assert "git lfs pull" in taken_for(file)
    with pytest.raises(UnsupportedModel, match="git lfs pull"):
        find_model(str(tmp_path))
    assert taken_for(tmp_path) == taken_for(tmp_path / "x") == ""
