"""float16 on models whose residual stream leaves its range (engines.md 3.15)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.checkpoints import R1, Config, weights, write
from tests.engine.driving import Driven
from tests.engine.quant import writers
from torch import Tensor

from twinline.engine.models import half_range, loader
from twinline.facts.models import UnsupportedModel

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58]
SIZES: Config = R1 | {"num_hidden_layers": 2, "moe_intermediate_size": 128, "intermediate_size": 128, "hidden_size": 64}


def massive(tensors: dict[str, Tensor], times: float) -> dict[str, Tensor]:
    """Stream and inner values `times` as large: as R1's and Qwen2.5's are at their first tokens."""
    grown = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight")
    return {n: t * times if n.endswith(grown) else t for n, t in tensors.items()}


def error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize("kind", ["plain", "fp8", "w4a16"])
def test_trap_15_a_stream_beyond_float16(
    kind: str, order: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = massive(weights(SIZES), 2.0**15)
    config = SIZES | {"dtype": "bfloat16"}
    if kind != "plain":
        made = getattr(writers, kind)(tensors)
        config, tensors = config | {"quantization_config": made.config}, made.tensors
    folder = write(tmp_path / "model", config, tensors)
    want = Driven(folder, dtype="float32").logits(IDS)
    assert error(Driven(folder, dtype="float16").logits(IDS), want) < 0.05
    with monkeypatch.context() as m:
        m.setattr(half_range, "EXPONENT", 0)
        assert not Driven(folder, dtype="float16").logits(IDS).isfinite().all(), "the trap is not there"


def test_where_nothing_overflows_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two: the same bits. Weights are of a size at which none is lost below float16's least value."""
    tensors = {n: t.half().float().clamp(-2, 2) * 64 if "embed" in n else t for n, t in weights(SIZES).items()}
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].sign() * 64
    folder = write(tmp_path / "model", SIZES, tensors)
    got = Driven(folder, dtype="float16").logits(IDS)
    monkeypatch.setattr(half_range, "EXPONENT", 0)
    plain = Driven(folder, dtype="float16").logits(IDS)
    want = Driven(folder, dtype="float32").logits(IDS)
    assert error(got, want) < 1.3 * error(plain, want) < 0.01
    assert (got == plain).float().mean() > 0.5


@pytest.mark.parametrize("name", ["llama3-tied", "llama3-bias", "v3-bias", "glm4", "ernie-bias", "mixtral"])
def test_every_kind_of_part(name: str, saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied heads, biases of outputs, norms behind attention and MLP, experts: the same model in float16."""
    source = saved(name).folder
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    folder = write(tmp_path / name, config | {"dtype": "bfloat16"}, tensors)
    want = Driven(folder, dtype="float32").logits(IDS)
    usual = error(Driven(folder, dtype="float16").logits(IDS), want)
    with monkeypatch.context() as m:
        m.setattr(half_range, "EXPONENT", 0)
        plain = error(Driven(folder, dtype="float16").logits(IDS), want)
    assert usual < 2 * plain + 1e-3 < 0.1
    with monkeypatch.context() as m:  # norms that are not told are seen, where the stream is small
        small = {n: t / 2**9 if "embed" in n else t for n, t in tensors.items()}
        quiet = write(tmp_path / "quiet", config | {"dtype": "bfloat16"}, small)
        want = Driven(quiet, dtype="float32").logits(IDS)
        told = error(Driven(quiet, dtype="float32").logits(IDS), want)
        m.setattr(loader, "exponent_for", lambda dtype, spec: 4)
        assert error(Driven(quiet, dtype="float32").logits(IDS), want) < told + 1e-5, "float32 shows it to the bit"


def test_a_checkpoint_in_float16_is_left_alone() -> None:
    from twinline.facts.models import spec_from_config

    spec = spec_from_config(SIZES)
    assert half_range.exponent_for(torch.float16, dataclasses.replace(spec, dtype="bfloat16")) == half_range.EXPONENT
    assert half_range.exponent_for(torch.float16, dataclasses.replace(spec, dtype="float16")) == 0
    assert half_range.exponent_for(torch.bfloat16, spec) == 0


def test_a_scale_of_both_halves_is_refused() -> None:
    from twinline.engine.ops.quantized import Quantized

    data = Quantized(torch.zeros(160, 128).to(torch.float8_e4m3fn), torch.ones(2, 1), torch.float16)
    with pytest.raises(UnsupportedModel, match="80 rows of gate end inside a block of 128"):
        half_range._upper("layers.0.mlp.gate_up.weight", data)
