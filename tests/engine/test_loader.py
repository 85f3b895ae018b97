"""Loading a checkpoint folder: what is wrong with one is an UnsupportedModel with one clear line; weights stream."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import struct
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.engine.checkpoints import R1, V2_LITE, Config, Weights, weights, write, write_sharded
from tests.engine.driving import Driven, same
from torch import Tensor

from twinline.engine.models import loader, parts, shards
from twinline.facts.models import UnsupportedModel

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58]
SOME = "model.layers.1.self_attn.o_proj.weight"


def refusal(folder: Path) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        Driven(folder)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", R1, weights(R1))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "sharded", R1, weights(R1), 4)


def changed(tmp_path: Path, change: Callable[[Weights], Any], config: Config = R1) -> Path:
    tensors = weights(config)
    change(tensors)
    return write(tmp_path / "changed", config, tensors)


# Files.


def test_a_missing_folder_or_configuration(tmp_path: Path) -> None:
    assert "no model folder at" in refusal(tmp_path / "nowhere")
    assert "has no config.json" in refusal(tmp_path)


def test_a_broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')
    assert "config.json cannot be read" in refusal(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(R1 | {"architectures": ["MambaForCausalLM"]}))
    assert "MambaForCausalLM" in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors and no model.safetensors.index.json" in refusal(folder)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00003-of-00004.safetensors").unlink()
    message = refusal(sharded)
    assert "1 of 4 shards are missing" in message and "model-00003-of-00004.safetensors" in message


def test_a_shard_that_lacks_its_tensor(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    other = next(f for f in index["weight_map"].values() if f != index["weight_map"][SOME])
    index["weight_map"][SOME] = other
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(sharded)
    assert SOME in message and other in message


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', '{"weight_map": {"a": ["b"]}}',
     '{"weight_map": {"a": 5}}', '{"weight_map": {"a": null}}', "[" * 100_000,
     '{"weight_map": {"a": "' + "b" * 300 + '"}}'],
)  # fmt: skip
def test_a_broken_index(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(sharded)


@pytest.mark.parametrize("share", [0, 1e-5, 0.001, 0.02, 0.3, 0.9, 0.999999])
def test_a_truncated_file(share: float, folder: Path, sharded: Path) -> None:
    """Cut inside the length, the header or the data."""
    for file in (folder / "model.safetensors", sharded / "model-00002-of-00004.safetensors"):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])
        message = refusal(file.parent)
        assert file.name in message and "corrupt or truncated" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: struct.pack("<Q", 2**60) + raw[8:],
        lambda raw: struct.pack("<Q", 0) + raw[8:],
        lambda raw: raw[:8] + b"\xff" * 40 + raw[48:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: raw.replace(b'"F32"', b'"F99"', 1),
        lambda raw: raw.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1),
        lambda raw: b"PK\x03\x04" + raw[4:],
        lambda raw: raw + b"\x00" * 64,
    ],
    ids=["huge length", "no length", "not utf-8", "not an object", "unknown type", "gap", "zip", "longer"],
)
def test_a_corrupt_header(damage: Callable[[bytes], bytes], folder: Path) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(damage(raw))
    assert file.read_bytes() != raw
    assert "corrupt or truncated" in refusal(folder)


def test_a_pointer_of_git_lfs_says_how_to_fetch_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(folder)


def test_weights_of_another_format_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is of a format that is not read here" in refusal(folder)


def test_a_folder_where_a_file_should_be(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "model.safetensors" in refusal(folder)


# Tensors.


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", SOME,
     "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.gate.e_score_correction_bias",
     "model.layers.2.mlp.experts.7.gate_proj.weight", "model.layers.2.self_attn.kv_a_proj_with_mqa.weight"],
)  # fmt: skip
def test_a_missing_tensor(name: str, tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, lambda w: w.pop(name)))
    assert "lacks 1 tensors" in message and name in message


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.experts.8.up_proj.weight", "model.layers.0.self_attn.q_proj.weight",
     "model.layers.0.self_attn.o_proj.weight_scale_inv", "model.layers.0.self_attn.o_proj.bias", "visual.proj.weight",
     "model.layers.x.weight"],
)  # fmt: skip
def test_a_surplus_tensor(name: str, tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, lambda w: w.update({name: torch.zeros(2, 2)})))
    assert "1 tensors" in message and "no use for" in message and name in message


def test_known_leftovers_are_ignored(tmp_path: Path) -> None:
    """Rotary tables of old exports, scales of an 8-bit cache as quantisers wrote them over time, prediction layers."""
    inert = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    of_cache = ("k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point", "v_proj.output_scale")
    inert |= {f"model.layers.{i}.self_attn.{name}": torch.tensor([0.02]) for i in range(3) for name in of_cache}
    inert["model.layers.3.eh_proj.weight"] = torch.zeros(2, 2)
    plain = Driven(write(tmp_path / "plain", R1, weights(R1))).logits(IDS)
    assert same(Driven(changed(tmp_path, lambda w: w.update(inert))).logits(IDS), plain)


def reshape(name: str, *shape: int) -> Callable[[Weights], Any]:
    return lambda w: w.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (SOME, (32, 29)),
        (SOME, (30, 32)),
        (SOME, (32,)),
        (SOME, (32, 30, 1)),
        ("model.norm.weight", (33,)),
        ("model.norm.weight", (1,)),
        ("model.norm.weight", (32, 1)),
        ("model.embed_tokens.weight", (60, 32)),
        ("model.layers.0.mlp.gate_proj.weight", (43, 32)),
        ("model.layers.0.mlp.up_proj.weight", (44, 31)),
        ("model.layers.1.mlp.experts.3.down_proj.weight", (20, 32)),
        ("model.layers.1.mlp.experts.3.up_proj.weight", (1, 32)),
        ("model.layers.1.mlp.gate.weight", (9, 32)),
        ("model.layers.1.self_attn.kv_a_proj_with_mqa.weight", (18, 32)),
        ("model.layers.1.self_attn.kv_b_proj.weight", (18, 66)),
    ],
)
def test_a_wrong_shape(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, reshape(name, *shape)))
    assert "shape" in message and "the configuration asks for" in message


def test_a_scalar_where_a_matrix_should_be(tmp_path: Path) -> None:
    assert "shape" in refusal(changed(tmp_path, reshape(SOME)))


def test_a_fused_parameter_whose_second_piece_is_narrow(tmp_path: Path) -> None:
    """[inner, 1] beside [inner, hidden] must not be stretched."""
    for name in ("gate_proj", "up_proj"):
        assert "shape" in refusal(changed(tmp_path, reshape(f"model.layers.0.mlp.{name}.weight", 44, 1)))


def test_fused_pieces_that_only_together_have_the_right_size(tmp_path: Path) -> None:
    def swap(w: Weights) -> None:
        w["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(40, 32)
        w["model.layers.0.mlp.up_proj.weight"] = torch.zeros(48, 32)

    assert "shape" in refusal(changed(tmp_path, swap))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool])
def test_a_tensor_that_holds_no_real_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    """Packed weights of some quantiser: casting them would serve garbage."""
    assert SOME in refusal(changed(tmp_path, lambda w: w.update({SOME: torch.zeros(w[SOME].shape, dtype=dtype)})))


# Heads.


def test_the_head_is_packed_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is in the last file, and behind the norm there."""
    folder, tensors = write(tmp_path / "model", R1, weights(R1)), weights(R1)
    (folder / "model.safetensors").unlink()
    last = {"model.norm.weight": tensors["model.norm.weight"].double(), "lm_head.weight": tensors["lm_head.weight"]}
    files = {"first": {name: tensors[name] for name in tensors.keys() - last.keys()}, "last": last}
    for file, part in files.items():
        save_file({name: tensor.contiguous() for name, tensor in part.items()}, folder / f"{file}.safetensors")
    where = {name: f"{file}.safetensors" for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with shards.Shard(folder / "last.safetensors") as shard:
        assert list(shard.tensors)[-1] == "lm_head.weight"
    settled, settle = [], loader._settle

    def settling(model: Any, name: str, *rest: Any) -> None:
        settled.append(name)
        settle(model, name, *rest)

    monkeypatch.setattr(loader, "_settle", settling)
    Driven(folder)
    assert settled[0] == "head.weight" and len(settled) > 10


def test_tied_and_untied_heads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, tied = weights(R1), R1 | {"tie_word_embeddings": True}
    own = Driven(write(tmp_path / "own", R1, tensors))
    headless = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    without = Driven(write(tmp_path / "without", tied, headless))
    twice = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    shared = Driven(write(tmp_path / "shared", tied, tensors | twice))
    copied = Driven(write(tmp_path / "copied", R1, tensors | twice))
    assert shared.built.spec.tied and same(shared.logits(IDS), without.logits(IDS))
    torch.testing.assert_close(shared.logits(IDS), copied.logits(IDS))
    assert (own.logits(IDS) - shared.logits(IDS)).abs().max() > 0.1
    assert "lm_head.weight" in refusal(write(tmp_path / "untied", R1, headless))
    assert "another head" not in caplog.text
    denied = Driven(write(tmp_path / "denied", tied, tensors))
    assert same(denied.logits(IDS), own.logits(IDS)), "the head that the weights hold is the model's"
    assert "another head: it is used" in caplog.text
    monkeypatch.setattr(shards, "PIECE", 1000)  # bytes: the two are compared by pieces
    twice["lm_head.weight"][-1, -1] += 1
    assert not Driven(write(tmp_path / "nearly", tied, tensors | twice)).built.spec.tied


# Reading.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [R1, V2_LITE], ids=["r1", "v2-lite"])
def test_ragged_sizes_in_every_dtype(config: Config, dtype: str, tmp_path: Path) -> None:
    ragged = config | {"vocab_size": 61, "hidden_size": 37, "intermediate_size": 43, "moe_intermediate_size": 17,
                       "kv_lora_rank": 19, "v_head_dim": 11, "qk_nope_head_dim": 13}  # fmt: skip
    exact = Driven(write(tmp_path / "ragged", ragged, weights(ragged))).logits(IDS)
    got = Driven(tmp_path / "ragged", dtype=dtype).logits(IDS).float()
    assert got.isfinite().all() and got.shape == (len(IDS), 61)
    if dtype == "float32":
        assert same(got, exact)
    else:
        assert (got - exact).abs().median() <= {"bfloat16": 0.05, "float16": 0.01}[dtype] * exact.abs().max()


@pytest.mark.parametrize("shards", [2, 5, 17])
def test_pieces_of_a_parameter_in_different_files(shards: int, tmp_path: Path) -> None:
    tensors = weights(R1)
    whole = Driven(write(tmp_path / "whole", R1, tensors)).logits(IDS)
    assert same(Driven(write_sharded(tmp_path / "parts", R1, tensors, shards)).logits(IDS), whole)


def test_the_index_goes_before_a_single_file(sharded: Path, folder: Path) -> None:
    want = Driven(folder).logits(IDS)
    write(sharded, R1, weights(R1, seed=9))
    assert same(Driven(sharded).logits(IDS), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_stream(dtype: str, order: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the model holds for good no more lives than two parts and one tensor that is converted; a sealed part
    holds no raw weight beside its packed one; at the end nothing lives but what the model holds."""
    made: list[shards.Memory] = []
    beside: list[int] = []
    parts_bytes: dict[str, int] = defaultdict(int)
    settle = loader._settle

    class Spy(shards.Memory):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    def spy_settle(model: Any, name: str, data: Tensor, *more: Any) -> None:
        parts_bytes[name.rpartition(".")[0]] += data.nbytes
        settle(model, name, data, *more)
        del data
        beside.append(made[0].lent - raw(model))

    def raw(model: Any) -> int:
        """Bytes of memory as it was read that the model's tensors lie in."""
        return sum(size for at, size in storages(model).items() if at in lent_at)

    lent_at: set[int] = set()
    empty = shards.Memory.empty

    def spy_empty(self: shards.Memory, *args: Any) -> Tensor:
        made_now = empty(self, *args)
        lent_at.add(made_now.untyped_storage().data_ptr())
        return made_now

    monkeypatch.setattr(Spy, "empty", spy_empty)
    monkeypatch.setattr(loader, "Memory", Spy)
    monkeypatch.setattr(loader, "_settle", spy_settle)
    model = Driven(folder, dtype=dtype).model
    gc.collect()
    assert len(beside) > 30 and max(beside) <= 3 * max(parts_bytes.values())
    assert made[0].lent == raw(model)
    for module in model.modules():
        if isinstance(module, parts.Linear):
            assert module.weight is None and module.packed is not None
    assert not any(p.is_meta for p in model.parameters())


def storages(model: Any) -> dict[int, int]:
    """Address and bytes of the host's memory of every tensor that a model holds, packed ones too."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.device.type == "cpu":
                found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (list, tuple)):
            for one in value:
                visit(one)
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif dataclasses.is_dataclass(value):
            visit([getattr(value, f.name) for f in dataclasses.fields(value)])

    for module in model.modules():
        visit(vars(module))
    return found


def test_memory_is_used_again_when_nobody_looks_at_it() -> None:
    memory = shards.Memory()
    first = memory.empty((3, 4), torch.float32)
    at, row = first.data_ptr(), first[1]
    del first
    assert memory.lent == 48 and memory.empty((3, 4), torch.float32).data_ptr() != at  # the row is still looked at
    del row
    again = memory.empty((2, 12), torch.bfloat16)
    assert again.data_ptr() == at and memory.lent == 48
    again.fill_(1)
    del memory
    assert again.sum() == 24


def test_a_shard_that_shrinks_while_it_is_read(folder: Path) -> None:
    file = folder / "model.safetensors"
    with shards.Shard(file) as shard:
        last = list(shard.tensors)[-1]
        stored = shard.stored(last)
        os.truncate(file, file.stat().st_size - 2)
        with pytest.raises(UnsupportedModel, match=f"tensor {last} cannot be read: the file ends before it"):
            shard.read(last, torch.empty(stored.shape, dtype=shards.DTYPES[stored.dtype]))
