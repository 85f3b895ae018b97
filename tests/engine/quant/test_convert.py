"""Conversion from every variant to every other: numbers, files, configuration, and that others read what is written."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.engine.checkpoints import R1, Config, weights, write, write_sharded
from tests.engine.driving import Driven, only, same
from tests.engine.quant import writers
from torch import Tensor

from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.ops.quantized import dequantize, quantize
from twinline.engine.quant import convert as module
from twinline.engine.quant.convert import Converted, convert, split
from twinline.engine.quant.matrices import matrix
from twinline.engine.quant.quality import compare
from twinline.engine.quant.shard_file import Entry
from twinline.engine.quant.variants import read_variant
from twinline.facts.families import read_anatomy
from twinline.facts.forms import published
from twinline.facts.model_files import stored_bytes
from twinline.facts.models import UnsupportedModel
from twinline.facts.quantization import read_quantization
from twinline.facts.weight_form import WeightForm, read_weight_form
from twinline.facts.weights import checkpoint_bytes

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58]
# All inputs of linear layers are multiples of 64, not of 128; with a layer that drafts.
SIZES: Config = R1 | {
    "num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 64,
    "n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "n_shared_experts": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 64, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 32, "num_nextn_predict_layers": 1,
    "dtype": "bfloat16", "rope_interleave": True,
}  # fmt: skip
VARIANTS = ("bfloat16", "float16", "float32", "fp8", "int8", "int4:32", "int4:64")


def turned(source: Path, target: Path, to: str, shard_bytes: int = 2**40) -> Converted:
    return convert(source, target, read_variant(to), shard_bytes, lambda done, total: None)


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def values(folder: Path, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every matrix of a folder, as it is read; all else as it is."""
    declared = read_quantization(folder)
    with Checkpoint(folder) as checkpoint:
        found = module.everything(checkpoint, declared)
        return {m.name: (m.decode().values(dtype) if m.decode else checkpoint.read(m.name)) for m in found}


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """As published: bfloat16, with the correction bias in float32."""
    return {n: t if "correction_bias" in n else t.bfloat16() for n, t in weights(SIZES).items()}


@pytest.fixture(scope="module")
def folder(plain: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_sharded(tmp_path_factory.mktemp("source") / "model", SIZES, plain, 3)
    (made / "tokenizer.json").write_text("{}")
    (made / "generation_config.json").write_text('{"eos_token_id": 7}')
    (made / "quantize_config.json").write_text("{}")
    (made / "pytorch_model.bin").write_bytes(b"old")
    return made


@pytest.mark.parametrize("to", VARIANTS)
def test_every_variant_of_a_plain_model(to: str, folder: Path, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Linear layers are what `quantize` makes of them, the rest is untouched, and what fits counts it to the byte."""
    done = turned(folder, tmp_path / "new", to)
    got, form = values(tmp_path / "new"), read_weight_form(to)[0]
    assert got.keys() == plain.keys()
    for name, tensor in plain.items():
        if form.kind == "plain":
            want = tensor if "correction_bias" in name else tensor.to(getattr(torch, to))
        elif writers.is_matrix(name) and not ("kv_b_proj" in name and form.kind != "fp8"):
            scale = torch.bfloat16 if form.kind == "int8" else torch.float32
            numbers, scales = quantize(tensor.float(), form, scale)
            want = dequantize(numbers, scales, form, torch.float64)
            assert 0 < (want - tensor.double()).norm() < 0.15 * tensor.double().norm()
        else:
            want = tensor
        assert torch.equal(got[name], want), name
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    anatomy = read_anatomy(config)
    assert stored_bytes(tmp_path / "new") == done.bytes_after == checkpoint_bytes(anatomy, published(anatomy))
    assert config["dtype"] == (to if form.kind == "plain" else "bfloat16") and not done.kept
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]  # fmt: skip


def test_trap_22_what_conversion_leaves_plain(folder: Path, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Bit for bit, and named in the configuration: a reader that quantises by kind of module must know."""
    for to in ("fp8", "int8", "int4:64"):
        new = tmp_path / to
        turned(folder, new, to)
        got = tensors(new)
        left = {n for n in plain if n in got and got[n].dtype == plain[n].dtype}
        for part in ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj", "shared_head"):
            names = {n for n in plain if part in n}
            assert names and names <= left and all(torch.equal(got[n], plain[n]) for n in names), part
        assert got["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
        declared = json.loads((new / "config.json").read_text())["quantization_config"]
        named = declared["modules_to_not_convert" if to == "fp8" else "ignore"]
        matrices = {n.removesuffix(".weight") for n in left if got[n].ndim == 2 and "embed" not in n}
        assert set(named) == matrices >= {"lm_head", "model.layers.1.mlp.gate", "model.layers.2.eh_proj"}
        assert ("model.layers.0.self_attn.kv_b_proj" in named) == (to != "fp8")


@pytest.mark.parametrize("kind", ["fp8", "w8a8", "w4a16", "gptq", "gptq act order", "awq"])
def test_from_every_quantized_source(kind: str, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Rounded once to a plain type; copied where the form is the same; quantized anew from exact values where not."""
    makers: dict[str, Callable[[dict[str, Tensor]], writers.Written]] = {
        "fp8": writers.fp8, "w8a8": writers.w8a8, "w4a16": writers.w4a16, "gptq": writers.gptq, "awq": writers.awq,
        "gptq act order": lambda w: writers.gptq(w, act_order=True),
    }  # fmt: skip
    small = {n: t for n, t in plain.items() if "layers.2." not in n}
    made = makers[kind]({n: t.float() if writers.is_matrix(n) else t for n, t in small.items()})
    config = SIZES | {"num_nextn_predict_layers": 0, "quantization_config": made.config}
    source = write(tmp_path / "source", config, made.tensors)
    turned(source, tmp_path / "plain", "bfloat16")
    for name, value in values(tmp_path / "plain").items():
        assert torch.equal(value, made.truth[name].to(value.dtype)), name
    assert read_quantization(tmp_path / "plain") is None
    same = {"fp8": "fp8", "w8a8": "int8", "w4a16": "int4:32", "gptq": "int4:32"}.get(kind)
    for to in {"fp8", "int8", "int4:32"} - {same}:
        new, form = tmp_path / to.replace(":", "-"), read_weight_form(to)[0]
        assert turned(source, new, to).copied == 0
        name = "model.layers.0.mlp.down_proj.weight"
        exact = made.truth[name].float()
        want = dequantize(
            *quantize(exact, form, torch.bfloat16 if to == "int8" else torch.float32), form, torch.float64
        )
        assert torch.equal(values(new)[name], want)
    if same is None:
        return
    done = turned(source, tmp_path / "same", same)
    before, after = tensors(source), tensors(tmp_path / "same")
    absorbed = {n for n in before if "kv_b_proj" in n and kind != "fp8"}
    if kind == "gptq":  # its numbers, and its float16 scales rounded to bfloat16
        assert done.copied == 0
        found = matrix(Checkpoint(tmp_path / "same"), "model.layers.0.mlp.down_proj.weight",
                       read_quantization(tmp_path / "same"))  # fmt: skip
        was = matrix(Checkpoint(source), "model.layers.0.mlp.down_proj.weight", read_quantization(source))
        assert found is not None and found.decode is not None and was is not None and was.decode is not None
        assert torch.equal(found.decode().numbers, was.decode().numbers)
        return
    assert done.copied == sum(writers.is_matrix(n) and n not in absorbed and "kv_b" not in n for n in small) + (
        2 if kind == "fp8" else 0
    )
    assert all(
        torch.equal(after[n].view(torch.uint8), t.view(torch.uint8)) for n, t in before.items() if n not in absorbed
    )


@pytest.mark.parametrize("to", ["fp8", "int8", "int4:64"])
def test_the_engine_serves_what_was_written(
    to: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the form that it is stored in; and as `--weights` gives it, where the same is quantized with the same scales:
    int8 is stored with bfloat16 ones, and fp8 with the latent's up-projection too."""
    only(monkeypatch, "reference")
    turned(folder, tmp_path / "new", to)
    line = Driven(tmp_path / "new")
    assert line.model.layers[1].attention.out.form == read_weight_form(to)[0]
    assert same(line.logits(IDS), Driven(tmp_path / "new", weights="plain").logits(IDS))
    plain, given = Driven(folder).logits(IDS), Driven(folder, weights=to, head_weights="plain").logits(IDS)
    error, usual = ((logits - plain).norm() / plain.norm() for logits in (line.logits(IDS), given))
    assert 0 < error < 2 * usual
    if to == "int4:64":
        torch.testing.assert_close(line.logits(IDS), given)


def test_files_of_a_given_size(folder: Path, plain: dict[str, Tensor], tmp_path: Path) -> None:
    most = 60_000
    told: list[tuple[int, int]] = []
    done = convert(folder, tmp_path / "new", read_variant("int8"), most, lambda a, b: told.append((a, b)))
    new = tmp_path / "new"
    index = json.loads((new / "model.safetensors.index.json").read_text())
    files = sorted(new.glob("*.safetensors"))
    assert done.files == len(files) > 5 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert index["metadata"]["total_size"] == done.bytes_after == told[-1][0] == told[-1][1]
    assert [a for a, _ in told] == sorted(a for a, _ in told)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert {index["weight_map"][name] for name in opened.keys()} == {file.name}  # noqa: SIM118
        values_size = sum(t.numel() * t.element_size() for t in load_file(file).values())
        assert values_size <= most or len(load_file(file)) == 1
    turned(folder, tmp_path / "whole", "int8")
    whole = tensors(tmp_path / "whole")
    assert tensors(new).keys() == whole.keys()
    assert all(torch.equal(t, whole[n]) for n, t in tensors(new).items())
    assert same(Driven(new).logits(IDS), Driven(tmp_path / "whole").logits(IDS))


def test_entries_are_split_in_order() -> None:
    entries = [Entry(str(i), "U8", 1, (size,)) for i, size in enumerate([5, 5, 1, 30, 2, 2])]
    assert [[e.name for e in file] for file in split(entries, 10)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert split([], 10) == [[]]


def test_one_matrix_at_a_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before is gone when the next is read."""
    right, alive, most = Checkpoint.read, weakref.WeakSet[Tensor](), [0]

    def read(self: Checkpoint, *args: Any) -> Tensor:
        most[0] = max(most[0], len(alive))
        found = right(self, *args)
        alive.add(found)
        return found

    monkeypatch.setattr(Checkpoint, "read", read)
    for to in ("bfloat16", "int4:64"):
        turned(folder, tmp_path / to, to)
    turned(tmp_path / "int4:64", tmp_path / "back", "fp8")
    assert 0 < most[0] <= 3


def test_what_cannot_be_grouped_stays_plain_and_is_said(folder: Path, tmp_path: Path) -> None:
    """192 inputs are no multiple of 128."""
    done = turned(folder, tmp_path / "new", "int4:128")
    assert "model.layers.0.mlp.gate_proj.weight" in done.kept
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert {n.removesuffix(".weight") for n in done.kept} <= set(config["quantization_config"]["ignore"])
    anatomy = read_anatomy(config)
    assert stored_bytes(tmp_path / "new") == checkpoint_bytes(anatomy, published(anatomy))


def test_refusals_leave_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(source: Path, target: Path) -> str:
        with pytest.raises((UnsupportedModel, OSError)) as caught:
            turned(source, target, "int8")
        return str(caught.value)

    (tmp_path / "there").mkdir()
    assert "exists already" in refusal(folder, tmp_path / "there")
    assert "has no config.json" in refusal(tmp_path / "there", tmp_path / "new")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("", (), {"free": 1000})())
    assert "needs 0.00 GiB, and 0.00 GiB are free there" in refusal(folder, tmp_path / "new")
    monkeypatch.undo()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.ShardFile, "add", full)
    assert "No space left" in refusal(folder, tmp_path / "new")
    monkeypatch.undo()
    packed = writers.w8a8(weights(SIZES)).tensors
    assert "config.json does not name" in refusal(write(tmp_path / "packed", SIZES, packed), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "there"]
    for name in ("int8:64", "plain", "auto", "int3", ""):
        with pytest.raises(ValueError, match="int4:32"):
            read_variant(name)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["fp8", "int8", "int4:32"])
def test_transformers_reads_what_was_written(to: str, tmp_path: Path) -> None:
    """Every weight to the bit, through its own readers (compressed-tensors' library for the integers)."""
    import transformers

    if to != "fp8":
        pytest.importorskip("compressed_tensors")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=331, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).bfloat16().save_pretrained(tmp_path / "source")
    turned(tmp_path / "source", tmp_path / "new", to)
    own = transformers.FineGrainedFP8Config if to == "fp8" else transformers.CompressedTensorsConfig
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "new", dtype=torch.bfloat16, quantization_config=own(dequantize=True)
    )
    read = {n: t.bfloat16() for n, t in theirs.named_parameters()}
    ours = values(tmp_path / "new", torch.bfloat16)
    assert ours.keys() == read.keys()
    assert all(torch.equal(read[name], value.bfloat16()) for name, value in ours.items())
    anatomy = read_anatomy(json.loads((tmp_path / "new" / "config.json").read_text()))
    assert stored_bytes(tmp_path / "new") == checkpoint_bytes(anatomy, published(anatomy))


def test_quality_is_what_it_says(folder: Path, tmp_path: Path) -> None:
    """KL, agreement and perplexity against a calculation of their own, from logits that the engine gives."""
    turned(folder, tmp_path / "new", "int4:32")
    texts = [IDS, [7, 7, 1], list(range(60))]
    found = compare(folder, tmp_path / "new", texts).distance
    a, b = Driven(folder), Driven(tmp_path / "new", weights="plain")
    kl, same, said = [], [], ([], [])
    for ids in texts:
        p, q = (line.logits(ids).double().softmax(-1) for line in (a, b))
        kl += [(x * (x / y).log()).sum().item() for x, y in zip(p, q, strict=True)]
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
        for out, probabilities in zip(said, (p, q), strict=True):
            out.extend(probabilities[i, ids[i + 1]].log().item() for i in range(len(ids) - 1))
    assert found.positions == len(kl) == 73
    assert found.kl == pytest.approx(sum(kl) / len(kl), rel=1e-3) and found.kl_most == pytest.approx(max(kl), rel=1e-3)
    assert found.kl > 1e-3 and found.top1 == sum(same) / len(same) < 1
    for got, logprobs in ((found.perplexity_source, said[0]), (found.perplexity_target, said[1])):
        assert got == pytest.approx(torch.tensor(logprobs).double().mean().neg().exp().item(), rel=1e-4)
    itself = compare(folder, folder, texts, prompts=[IDS], most=5)
    assert itself.distance.kl == 0 and itself.distance.top1 == 1
    assert itself.answers[0] == itself.answers[1] and len(itself.answers[0][0]) == 5


def test_forms_that_are_written_are_forms_that_are_read() -> None:
    assert read_variant("int4").form == WeightForm("int4", 32)
    assert read_variant("bf16").plain == torch.bfloat16 and str(read_variant("bf16")) == "bfloat16"


def test_a_value_that_the_new_type_cannot_hold_is_no_infinity(plain: dict[str, Tensor], tmp_path: Path) -> None:
    name = next(name for name in plain if name.endswith("down_proj.weight"))
    large = plain | {name: plain[name].clone()}
    large[name][0, 0] = 1e5
    with pytest.raises(UnsupportedModel, match=f"{name} has values that float16 cannot hold"):
        turned(write(tmp_path / "source", SIZES, large), tmp_path / "new", "float16")
    assert not (tmp_path / "new").exists()
