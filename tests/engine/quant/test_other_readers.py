"""The same files read by others: `transformers` and the `compressed-tensors` library, independent of our readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.checkpoints import write
from tests.engine.driving import Driven, only
from tests.engine.quant import writers
from tests.engine.quant.writers import Written
from torch import Tensor

from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.quant.matrices import matrix
from twinline.facts.quantization import quantization

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58]
MAKERS: dict[str, Callable[[dict[str, Tensor]], Written]] = {
    "fp8": writers.fp8, "w8a8": writers.w8a8, "w4a16": writers.w4a16,
    "w4a16 asymmetric": lambda w: writers.w4a16(w, symmetric=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes are multiples of 128: `transformers` cannot read blocks that end inside a matrix."""
    import transformers

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=331, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tensors = {n: t.bfloat16() * 3 for n, t in load_file(folder / "model.safetensors").items()}
    return json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}, tensors


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MAKERS)
def test_transformers_reads_the_same_model(
    kind: str, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight to the bit, rounded to bfloat16 as it does; and so the logits."""
    import transformers

    if kind != "fp8":
        pytest.importorskip("compressed_tensors")
    transformers.utils.logging.disable_progress_bar()
    config, tensors = llama
    made = MAKERS[kind]({n: t.float() if writers.is_matrix(n) else t for n, t in tensors.items()})
    folder = write(tmp_path / "packed", config | {"quantization_config": made.config}, made.tensors)
    own = transformers.FineGrainedFP8Config if kind == "fp8" else transformers.CompressedTensorsConfig
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=own(dequantize=True)
    )
    declared = quantization({"quantization_config": made.config})
    read = dict(theirs.named_parameters())
    with Checkpoint(folder) as checkpoint:
        for name in filter(writers.is_matrix, tensors):
            found = matrix(checkpoint, name, declared)
            assert found is not None and found.decode is not None
            assert torch.equal(found.decode().values(torch.bfloat16), read[name].to(torch.bfloat16)), name
    only(monkeypatch, "reference")
    want = theirs.float()(torch.tensor([IDS])).logits[0]
    truth = write(tmp_path / "truth", config, {n: t.bfloat16() for n, t in made.truth.items()})
    torch.testing.assert_close(Driven(truth, dtype="float32").logits(IDS), want, rtol=1e-4, atol=1e-4)
    got = Driven(folder, dtype="float32").logits(IDS)
    assert (got - want).norm() < 0.01 * want.norm(), "float32 keeps what bfloat16 rounds off, and no more"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", [False, True])
def test_what_the_library_packs(bits: int, symmetric: bool, order: bool, tmp_path: Path) -> None:
    """compressed-tensors' own packing, its zero points, groups in another order, inputs that fill no word."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import save_file

    declared = writers.compressed("pack-quantized", bits, 32, symmetric)
    scheme = declared["config_groups"]["group_0"] | {"input_activations": None}  # type: ignore[index]
    draw = torch.Generator().manual_seed(bits)
    rows, columns, half = 36, 96, 2 ** (bits - 1)
    state = {"weight": torch.randn(rows, columns, generator=draw).bfloat16(),
             "weight_scale": (torch.rand(rows, 3, generator=draw) / half + 0.01).bfloat16()}  # fmt: skip
    if not symmetric:
        state["weight_zero_point"] = torch.randint(-half, half, (rows, 3), generator=draw, dtype=torch.int8)
    packed = PackedQuantizationCompressor.compress(state, QuantizationScheme(**scheme))
    plain = PackedQuantizationCompressor.decompress(packed, QuantizationScheme(**scheme))["weight"]
    columns_in = torch.randperm(columns, generator=draw) if order else torch.arange(columns)
    if order:  # its inputs shuffled, each with the group that it had
        levels = writers.pack_rows(unpacked(packed["weight_packed"], bits, columns)[:, columns_in], bits)
        packed |= {"weight_packed": levels, "weight_g_idx": (columns_in // 32).int()}
    save_file({f"m.{n}": t.contiguous() for n, t in packed.items()}, tmp_path / "model.safetensors")
    found = matrix(Checkpoint(tmp_path), "m.weight", quantization({"quantization_config": declared}))
    assert found is not None and found.decode is not None
    assert (found.form is None) == (order or (bits == 8 and not symmetric))
    assert torch.equal(found.decode().values(torch.bfloat16), plain[:, columns_in])


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    each = 32 // bits
    lists = [[(word >> (bits * i)) % 2**bits for word in row for i in range(each)] for row in words.tolist()]
    return torch.tensor(lists)[:, :columns]
