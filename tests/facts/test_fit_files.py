"""Finding a model: by name, by folder, by file; what a folder's own files say; refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from twinline.facts.model_files import bundled, find_model, stored_bytes
from twinline.facts.models import UnsupportedModel


def test_names_hub_names_and_aliases() -> None:
    for name in ("deepseek-r1", "DeepSeek-R1", "deepseek-ai/DeepSeek-R1", "deepseek-r1-0528"):
        assert find_model(name).name == "deepseek-r1"
    for name, model in bundled().items():
        assert find_model(name) is find_model(model.hub) is model


def test_near_misses_are_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"did you mean .*qwen3-30b-a3b"):
        find_model("qwen3-30b")
    with pytest.raises(UnsupportedModel, match="`twinline fit` lists those that are"):
        find_model("zzzzzz")


def test_folders_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(UnsupportedModel, match=r"has no config\.json"):
        find_model(str(folder))
    (folder / "config.json").write_text(json.dumps(bundled()["qwen3-8b"].config))
    assert find_model(str(folder)).name == find_model(str(folder / "config.json")).name == "mine"
    assert find_model(str(folder)).stored_bytes is None
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 16_381_470_720}}))
    assert find_model(str(folder)).stored_bytes == 16_381_470_720
    (folder / "config.json").write_text("[1]")
    with pytest.raises(UnsupportedModel, match="one JSON object"):
        find_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        find_model(str(folder))


def test_broken_files_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert stored_bytes(tmp_path) == 8
    for broken in (b"", b"1234", struct.pack("<Q", 2**60), struct.pack("<Q", 3) + b"[1]", struct.pack("<Q", 2) + b"{"):
        file.write_bytes(broken)
        assert stored_bytes(tmp_path) is None
    for offsets in ("[0, 1e999]", "[8, 0]", "[0.5, 1]", f"[0, {10**400}]"):
        header = b'{"a": {"data_offsets": %b}}' % offsets.encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        assert stored_bytes(tmp_path) is None
    for size in ('"big"', str(10**400)):
        (tmp_path / "model.safetensors.index.json").write_text(f'{{"metadata": {{"total_size": {size}}}}}')
        assert stored_bytes(tmp_path) is None
