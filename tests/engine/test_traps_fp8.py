"""The numeric traps of FP8 checkpoints (`engines.md`, 3.4 and 3.21 to 3.26), sprung one by one as in `test_traps.py`.

The checkpoints are written by `quant/writers.py`, the judge is the float64 oracle on the exact values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.engine import judged, oracle
from tests.engine.checkpoints import R1, Config, weights, write
from tests.engine.driving import Driven
from tests.engine.judged import IDS, SPRUNG, TOLERANCE
from tests.engine.quant import writers
from torch import Tensor

from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.ops.cpu import library
from twinline.engine.ops.quantized import Quantized, dequantize, quantize
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.engine.quant import matrices
from twinline.facts.families import read_anatomy
from twinline.facts.forms import find_form, published
from twinline.facts.layouts import Layout, impossible
from twinline.facts.model_files import bundled
from twinline.facts.quantization import quantization
from twinline.facts.weight_form import WeightForm

# Two squares of rows in q_b (160), kv_a (136 + 8) and kv_b (256), of columns in the hidden size: most ragged.
SIZES: Config = R1 | {
    "num_hidden_layers": 2, "hidden_size": 136, "intermediate_size": 160, "moe_intermediate_size": 128,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 136,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 32,
}  # fmt: skip
KV_B = "model.layers.{}.self_attn.kv_b_proj.weight"
KV_A = "model.layers.{}.self_attn.kv_a_proj_with_mqa.weight"


def unlike(config: Config) -> dict[str, Tensor]:
    """Random weights whose blocks differ in size eightfold, so that a scale of the wrong block is seen."""
    found = weights(config)
    for name, tensor in found.items():
        if writers.is_matrix(name):
            rows, columns = (torch.arange(n) // 128 for n in tensor.shape)
            tensor *= 8.0 ** -((rows[:, None] + columns) % 2)
    return found


class Fp8(judged.Case):
    """The engine on an fp8 checkpoint, the oracle on the values that it stands for."""

    def __init__(self, folder: Path, made: writers.Written, **options: Any) -> None:
        self.config, self.weights = SIZES | {"quantization_config": made.config}, made.tensors
        self.folder, self.options = write(folder, self.config, made.tensors), options
        self.truth = oracle.run(SIZES, made.truth, IDS)
        self.load()

    def load(self) -> None:
        self.line = Driven(self.folder, **self.options)
        self.line.engine.runner.graphs.why_not = "a test changes its ops"


@pytest.fixture(scope="module")
def made() -> writers.Written:
    return writers.fp8(unlike(SIZES))


@pytest.fixture
def fp8(tmp_path: Path, order: tuple[str, ...]) -> Callable[..., Fp8]:
    made_so_far = iter(range(100))
    return lambda made, **options: Fp8(tmp_path / str(next(made_so_far)), made, **options)


def sprung_by_scales(c: Fp8, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor]) -> bool:
    """The same checkpoint, loaded with scales that are changed on the way."""
    right = matrices._scales
    with monkeypatch.context() as m:
        m.setattr(matrices, "_scales", lambda checkpoint, name: wrong(right(checkpoint, name)))
        c.load()
        return c.sprung()


def test_trap_04_the_up_projection_is_dequantized_once(
    made: writers.Written, fp8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W_UK and W_UV are exactly what kv_b_proj stands for, in every form of the rest; expanding prefills and absorbing
    decodes agree with the oracle. Quantizing it again, or splitting it before its scales are applied, does not."""
    for options in ({}, {"weights": "plain"}, {"weights": "int8"}, {"dtype": "bfloat16"}):
        c = fp8(made, **options)
        for i, layer in enumerate(c.layers):
            uk, uv = layer.attention.uk_HdC.cpu(), layer.attention.uv_HvC.cpu()
            want = made.truth[KV_B.format(i)].view(4, 64, 136).to(uk.dtype)
            assert torch.equal(uk, want[:, :32]) and torch.equal(uv, want[:, 32:])
    c = fp8(made)
    assert c.agrees()
    attention = c.layers[1].attention
    right = attention.kv_up.data.clone().cpu()
    numbers = made.tensors[KV_B.format(1)].float()
    again = Quantized(*quantize(right, WeightForm("int8")), torch.float32)
    for wrong in (
        numbers / 448,
        matrices.Decoded(again.numbers, again.scales, WeightForm("int8")).values(torch.float32),
    ):
        assert not torch.equal(wrong, right)
        attention.kv_up.data.copy_(wrong)
        attention.seal()
        assert max(c.errors()) > TOLERANCE
    attention.kv_up.data.copy_(right)
    attention.seal()
    assert c.agrees()


def test_trap_21_the_scale_multiplies_and_the_last_block_is_ragged(
    made: writers.Written, fp8: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`weight_scale_inv` is no inverse; 144 rows of kv_a have 2 rows of scales, and R1's 576 have 5."""
    c = fp8(made)
    assert made.tensors[KV_A.format(0) + "_scale_inv"].shape == (2, 2)
    assert c.agrees()
    assert sprung_by_scales(c, monkeypatch, lambda s: 1 / s), "divided by the scale"
    assert sprung_by_scales(c, monkeypatch, lambda s: s[:1].expand_as(s)), "the first block's scale for the ragged one"
    assert sprung_by_scales(c, monkeypatch, lambda s: s.flip(1)), "blocks of columns in the wrong order"
    assert sprung_by_scales(c, monkeypatch, lambda s: s.t() if s.shape[0] == s.shape[1] else s), "transposed"
    found = writers.fp8({"m.weight": weights(R1 | {"kv_lora_rank": 568, "hidden_size": 200})[KV_A.format(0)]})
    assert found.tensors["m.weight_scale_inv"].shape == (5, 2)
    save_file(found.tensors, tmp_path / "model.safetensors")
    matrix = matrices.matrix(Checkpoint(tmp_path), "m.weight", quantization({"quantization_config": writers.FP8}))
    assert matrix is not None and matrix.decode is not None
    assert torch.equal(matrix.decode().values(torch.float64), found.truth["m.weight"])


def test_trap_22_what_is_not_quantized(made: writers.Written, fp8: Any) -> None:
    """Beside fp8 matrices, the embedding, the head, norms, the gate and its bias are the file's own, bit for bit."""
    c = fp8(made)
    names = {n for n, t in made.tensors.items() if t.dtype == torch.float8_e4m3fn}
    assert not any(part in n for n in names for part in ("embed", "lm_head", "norm", "mlp.gate.", "bias"))
    got = {"model.embed_tokens.weight": c.line.model.embed.weight, "model.norm.weight": c.line.model.norm.weight}
    gate = c.layers[1].mlp.gate
    got |= {"model.layers.1.mlp.gate.weight": gate.weight, "model.layers.1.mlp.gate.e_score_correction_bias": gate.bias}
    got |= {"model.layers.0.self_attn.q_a_layernorm.weight": c.layers[0].attention.q_norm.weight}
    for name, value in got.items():
        assert torch.equal(value.cpu(), made.tensors[name]), name
    assert c.line.model.head.form == WeightForm()
    head = made.tensors["lm_head.weight"]
    x = torch.eye(136).to(c.line.device)
    assert torch.equal(c.ops.linear(x, c.line.model.head.packed).cpu(), head.t())
    right = gate.weight.data.cpu()
    gate.weight.data.copy_(writers.fp8_blocks(right)[1])  # the trap: a gate in fp8 chooses other experts
    assert c.sprung()


def outlying(rows: int, columns: int) -> Tensor:
    """Rows with values ten thousand times the others in one block, and a row of zeros."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4))
    x[:, 5] *= 1e4
    x[-1] = 0
    return x


def test_trap_23_activations_and_sums_by_blocks(order: tuple[str, ...]) -> None:
    """Here activations meet fp8 weights unrounded, and each block of 128 inputs is added up in float32 under its own
    scale: at least as exact as rounding them by token and block. Other ways are seen: a scale for a whole row lets an
    outlier flatten the rest, sums kept in bfloat16 lose them, and a row of zeros has no scale to divide by."""
    weight = torch.randn(200, 640, generator=torch.Generator().manual_seed(5)) * 8.0 ** -(torch.arange(640) // 128 % 3)
    tensors, truth = writers.fp8_blocks(weight)
    ops = Ops(order, StaticFacts("cpu", torch.float32, weights=WeightForm("fp8")))
    packed = ops.linear.pack(
        Quantized(tensors["weight"], tensors["weight_scale_inv"], torch.float32), WeightForm("fp8")
    )
    x = outlying(6, 640)
    exact = x.double() @ truth.T

    def error(got: Tensor) -> float:
        small = x.clone().double()
        small[:, 5] = 0
        size = (small.abs() @ truth.abs().T).clamp(min=1e-12)  # what the values beside the outlier amount to
        return ((got.double() - exact).abs() / size).max().item()

    got = ops.linear(x, packed)
    assert got.isfinite().all() and not got[-1].any()

    def by_block(x: Tensor, size: int) -> Tensor:
        blocks = x.unflatten(1, (-1, size))
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448
        return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(1)

    one_block = error(by_block(x, 128) @ truth.T.float())
    whole_row = error(by_block(x, 640) @ truth.T.float())
    in_sixteen = torch.zeros(6, 200, dtype=torch.bfloat16)
    for k in range(0, 640, 128):
        in_sixteen += (x[:, k : k + 128] @ truth.T[k : k + 128].float()).bfloat16()
    assert error(got) < 0.02 * one_block
    assert error(in_sixteen) > 10 * error(got) and whole_row > 10 * error(got)
    naked = (x[-1:] / (x[-1:].abs().amax() / 448)).to(torch.float8_e4m3fn)
    assert naked.float().isnan().all(), "a row of zeros without the clamp"


def test_trap_24_scales_are_what_is_stored(made: writers.Written, fp8: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two where the checkpoint has them; never made of other scales, whatever the configuration declares."""
    powers = writers.fp8(unlike(SIZES), power_of_two=True)
    assert powers.config["scale_fmt"] == "ue8m0"
    assert all(s.log2().frac().eq(0).all() for n, s in powers.tensors.items() if n.endswith("scale_inv"))
    assert fp8(powers).agrees()
    bytes_ = {n: (t.log2() + 127).to(torch.uint8) if n.endswith("scale_inv") else t for n, t in powers.tensors.items()}
    assert fp8(writers.Written(powers.config, bytes_, powers.truth)).agrees(), "as bytes of e8m0"
    for declared in (made.config, made.config | {"scale_fmt": "ue8m0"}):
        c = fp8(writers.Written(declared, made.tensors, made.truth))
        assert c.agrees()
        for rounded in (Tensor.ceil, Tensor.round):
            assert sprung_by_scales(c, monkeypatch, lambda s, rounded=rounded: 2 ** rounded(s.log2()))


def test_trap_25_what_a_cut_would_break_and_the_other_code(tmp_path: Path) -> None:
    """18432 / 32 = 576 is no multiple of 128: refused, and 16 ranks not. The same bits in e4m3fnuz are half as much."""
    anatomy = read_anatomy(bundled()["deepseek-r1"].config)
    form = published(anatomy)
    assert form is not None and form.matrices is not None and form.matrices.block == (128, 128)
    assert "no multiple of the block" in impossible(anatomy, form, Layout(tensor=32))
    assert impossible(anatomy, form, Layout(tensor=16)) == ""
    assert impossible(anatomy, find_form("bf16"), Layout(tensor=32)) == "", "it is the blocks that forbid it"
    found = writers.fp8({"m.weight": torch.randn(130, 140)})
    bits = found.tensors["m.weight"].view(torch.uint8)
    bits[bits == 128] = 0
    for code, share in ((torch.float8_e4m3fn, 1.0), (torch.float8_e4m3fnuz, 0.5)):
        save_file(found.tensors | {"m.weight": bits.view(code)}, tmp_path / "model.safetensors")
        matrix = matrices.matrix(Checkpoint(tmp_path), "m.weight", quantization({"quantization_config": writers.FP8}))
        assert matrix is not None and matrix.decode is not None
        assert torch.equal(matrix.decode().values(torch.float64), found.truth["m.weight"] * share)
        assert (matrix.form == WeightForm("fp8")) == (share == 1), "numbers that kernels take as they are"
        numbers, scales = matrix.decode().as_form(WeightForm("fp8"))
        assert numbers.dtype == torch.float8_e4m3fn, "the engine takes them for that, whatever they are"
        again = dequantize(numbers, scales, WeightForm("fp8"), torch.float64)
        off = (again - found.truth["m.weight"] * share).norm() / (found.truth["m.weight"] * share).norm()
        assert off == 0 if share == 1 else off < 0.05


@pytest.mark.parametrize("flush", [False, True])
def test_trap_26_subnormals_are_values(flush: bool, order: tuple[str, ...], tmp_path: Path) -> None:
    """Every byte that is a number, from the file to a product, also where the processor flushes its own subnormals."""
    codes = torch.tensor([b for b in range(256) if b & 127 != 127], dtype=torch.uint8)
    want = torch.tensor([writers.e4m3(b) for b in codes.tolist()], dtype=torch.float64)
    assert ((want.abs() > 0) & (want.abs() < 2**-6)).sum() == 14, "seven subnormals of either sign"
    tensors = {"m.weight": codes.view(torch.float8_e4m3fn)[:, None].expand(-1, 8).contiguous(),
               "m.weight_scale_inv": torch.tensor([[0.25], [0.5]])}  # fmt: skip
    truth = want * torch.tensor([0.25] * 128 + [0.5] * 126)
    save_file(tensors, tmp_path / "model.safetensors")
    matrix = matrices.matrix(Checkpoint(tmp_path), "m.weight", quantization({"quantization_config": writers.FP8}))
    assert matrix is not None and matrix.decode is not None
    torch.set_flush_denormal(flush)
    try:
        numbers, scales = matrix.decode().as_form(WeightForm("fp8"))
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(matrix.decode().values(dtype)[:, 0].double(), truth)
            ops = Ops(order, StaticFacts("cpu", dtype, weights=WeightForm("fp8")))
            packed = ops.linear.pack(Quantized(numbers, scales, dtype), WeightForm("fp8"))
            got = ops.linear(torch.eye(8, dtype=dtype)[:1], packed)[0]
            assert torch.equal(got.double(), truth), dtype
            dropped = torch.where(truth.abs() < 2**-6 * 0.25, 0, truth)
            assert not torch.equal(got.double(), dropped), "dropping them would be seen"
            # Both squares hold 448, so that rounding the same numbers anew gives them a scale of 1.
            packed = ops.linear.pack(want.to(dtype)[:, None].expand(-1, 8).contiguous(), WeightForm("fp8"))
            assert torch.equal(ops.linear(torch.eye(8, dtype=dtype)[:1], packed)[0].double(), want), dtype
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
@pytest.mark.parametrize("variant", library.variants() if library.why_not() is None else [])
def test_trap_26_in_every_instruction_set(variant: str) -> None:
    loaded = library.library()
    assert loaded.handle.twinline_use(variant.encode())
    try:
        codes = torch.tensor([b for b in range(256) if b & 127 != 127], dtype=torch.uint8).view(torch.float8_e4m3fn)
        ops = Ops(("cpu", "reference"), StaticFacts("cpu", torch.bfloat16, weights=WeightForm("fp8")))
        packed = ops.linear.pack(Quantized(codes[None], torch.ones(1, 2), torch.bfloat16), WeightForm("fp8"))
        got = ops.linear(torch.eye(254, dtype=torch.bfloat16), packed)[:, 0]
        assert got.double().tolist() == [writers.e4m3(b) for b in range(256) if b & 127 != 127]
    finally:
        loaded.handle.twinline_use(loaded.variant.encode())


def test_the_judge_of_bytes() -> None:
    """Against what the standard says in words: greatest 448, least normal 2**-6, least of all 2**-9."""
    assert writers.e4m3(0x7E) == 448 and writers.e4m3(0x08) == 2**-6 and writers.e4m3(0x01) == 2**-9
    assert writers.e4m3(0x81) == -(2**-9) and writers.e4m3(0x80) == 0 and math.isnan(writers.e4m3(0xFF))
    assert SPRUNG > TOLERANCE
