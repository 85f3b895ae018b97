"""Checkpoints that the benchmark writes: whole, of the published shapes, and readable by the engine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from benchmarks.cpu import checkpoint, shapes
from twinline.facts.models import read_spec


@pytest.mark.parametrize(
    ("name", "millions", "read"),
    [("qwen-1.5b", 1777.1, 3.087), ("v3-small", 460.6, 0.239), ("v2-lite", 15706.5, 4.903)],
)
def test_shapes_hold_what_is_known_of_them(name: str, millions: float, read: float) -> None:
    """Parameters and the bytes that a token reads in bfloat16, as counted elsewhere."""
    config = shapes.SHAPES[name]
    assert round(shapes.parameters(config) / 1e6, 1) == millions
    assert round(shapes.read_of_one_token(config).bytes(16) / 1e9, 3) == read


@pytest.mark.parametrize("name", ["qwen-small", "v3-tiny"])
def test_a_checkpoint_can_be_read(name: str, tmp_path: Path) -> None:
    folder = checkpoint.make(name, tmp_path / name)
    spec = read_spec(folder)
    config = shapes.SHAPES[name]
    assert (spec.vocab, spec.hidden, spec.layers) == (
        config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]
    )  # fmt: skip
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == dict(shapes.tensors(config))  # noqa: SIM118
        matrix = file.get_tensor("model.layers.0.self_attn.o_proj.weight").float()
        norm = file.get_tensor("model.norm.weight")
    assert 0.015 < matrix.std() < 0.025 and abs(matrix.mean()) < 0.002
    assert torch.equal(norm, torch.ones_like(norm))
    words = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert sorted(words.values()) == list(range(config["vocab_size"]))


def test_what_goes_in_circles_says_each_token_after_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "DRAWN", 2**19 + 21)  # embeddings go round more than once
    file = io.BytesIO()
    checkpoint.write(shapes.QWEN_SMALL, file, in_circles=True)
    tensors = load(file.getvalue())
    norms = {name for name, tensor in tensors.items() if len(tensor.shape) == 1 and bool(tensor.any())}
    assert norms == {"model.norm.weight"}, "nothing is added to a token's embedding"
    said = (tensors["model.embed_tokens.weight"].float() @ tensors["lm_head.weight"].float().T).argmax(-1).tolist()
    size = checkpoint.CIRCLE
    assert said == [token // size * size + (token + 1) % size for token in range(shapes.QWEN_SMALL["vocab_size"])]


def test_a_whole_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    folder = checkpoint.make("v3-tiny", tmp_path)
    (folder / "model.safetensors").write_bytes(b"")
    assert checkpoint.make("v3-tiny", tmp_path).joinpath("model.safetensors").stat().st_size == 0


def test_the_correction_bias_is_float32_and_other_values_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "DRAWN", 4099)  # goes round many times
    file = io.BytesIO()
    checkpoint.write(shapes.V3_TINY, file)
    tensors = load(file.getvalue())
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if name.endswith("correction_bias") else torch.bfloat16), name


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    bits = torch.from_numpy(checkpoint.bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(bits, torch.from_numpy(values).to(torch.bfloat16))
