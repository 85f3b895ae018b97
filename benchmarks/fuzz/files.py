"""Files of others: checkpoints, configurations, folders of models, fleets."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from benchmarks.fuzz.given import DEEP, ROOT, TINY, Given, Made, scratch


def shards() -> Made:
    import torch

    from twinline.cli.folder import read_folder
    from twinline.cli.parser import CliError
    from twinline.engine.models import shards as module
    from twinline.facts.models import UnsupportedModel

    tensors = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
               "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}  # fmt: skip
    base, path = {"__metadata__": {"format": "pt"}, **tensors}, scratch() / "model.safetensors"
    shutil.copy(TINY / "config.json", path.parent)

    def one(given: Given) -> None:
        data, off = 22 + given.one_of((0, 0, 0, -1, 1, 40)), given.one_of((0, 0, 0, 1, 2**40))
        header = given.altered([base])
        path.write_bytes(struct.pack("<Q", len(header) + off) + header + bytes(data))
        with contextlib.suppress(CliError):
            read_folder(path.parent)
        with contextlib.suppress(UnsupportedModel), module.Shard(path) as shard:
            for name, stored in shard.tensors.items():
                begin, end = stored.data_offsets
                assert 0 <= begin <= end <= data
                if dtype := module.DTYPES.get(stored.dtype):
                    assert math.prod(stored.shape) * dtype.itemsize == end - begin
                    shard.read(name, torch.empty(stored.shape, dtype=dtype))

    return [base], one


def configs() -> Made:
    """config.json and the index of a checkpoint, as the engine reads them and as `twinline fit` does."""
    from twinline.cli import fit
    from twinline.cli.parser import CliError
    from twinline.engine.models.shards import shards
    from twinline.facts.model_files import bundled
    from twinline.facts.models import UnsupportedModel, read_spec
    from twinline.facts.quantization import read_quantization

    tiny, folder, parser = json.loads((TINY / "config.json").read_text("utf-8")), scratch(), argparse.ArgumentParser()
    fit.configure(parser)
    group = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 128}, "input_activations": None}
    stored = (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "compressed-tensors", "config_groups": {"g": group}, "ignore": ["re:.*head"]},
    )
    bases = [tiny, *(model.config for model in bundled().values())]
    bases += [{**tiny, "quantization_config": each} for each in stored]
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}

    def one(given: Given) -> None:
        words, indexed = ["--json"] * given.number(1), given.number(2) == 1
        (folder / "config.json").write_bytes(json.dumps(tiny).encode() if indexed else given.altered(bases))
        (folder / "model.safetensors.index.json").write_bytes(given.altered([index]) if indexed else b"{}")
        for read in (read_spec, read_quantization, shards):
            with contextlib.suppress(UnsupportedModel):
                read(folder)
        with contextlib.suppress(CliError), contextlib.redirect_stdout(io.StringIO()):
            fit.run(parser.parse_args([str(folder), "--chip", "h20x8", *words]))

    return bases, one


def fleets() -> Made:
    from twinline.lines.fleet.file import load
    from twinline.lines.fleet.marked import FileFaults

    laptop, path = (ROOT / "examples" / "laptop.yaml").read_text("utf-8"), scratch() / "fleet.yaml"
    lines = {
        "a": {"engine": "openai", "url": "http://h/v1", "options": {"continuation": "prefix"}, "lacks": ["tools"]},
        "b": {"engine": "native", "cards": [0], "price": "1 USD", "options": {"threads": 1}, "env": {"A": "b"}},
    }
    wide = {"lines": lines, "models": {"m": {"text": "embedded", "goals": {"ttft_seconds": 1}}}, "gateway": {"port": 1}}
    bases = [wide, {"lines": {"c": {"engine": "simulated", "weights": "embedded", "slots": 2}}}]

    def one(given: Given) -> None:
        path.write_bytes(given.altered(bases))
        with contextlib.suppress(FileFaults, OSError):
            load(path, {})

    written = (ROOT / "tests/lines/fleet/test_file.py").read_text("utf-8")
    fields = re.findall(r'"""\n(.*?)"""', written, re.DOTALL)
    return [laptop, *fields, *bases, "a: &a {b: *a}", "? [a]\n: 1", "a: 2026-99-99", f"a: {DEEP}"], one


def folders() -> Made:
    """The small files of a model folder, its tokenizer among them."""
    from twinline.gateway.served import ModelText
    from twinline.lines.drivers import pieces

    folder, names = scratch(), ("tokenizer_config", "generation_config", "config", "tokenizer")
    files = {name: json.loads((TINY / f"{name}.json").read_text("utf-8")) for name in names}
    more = {"additional_special_tokens": ["<a>"], "added_tokens_decoder": {"3": {"content": "<b>", "special": True}}}
    files["special_tokens_map"] = {"pad_token": {"content": "!"}, **more}
    files["tokenizer_config"] |= more
    files["config"]["text_config"] = {"eos_token_id": [1]}
    good = {name: json.dumps(said) for name, said in files.items()}
    for name, said in good.items():
        (folder / f"{name}.json").write_text(said)

    def one(given: Given) -> None:
        name = given.one_of(list(files))
        (folder / f"{name}.json").write_bytes(given.altered([files[name]]))
        with contextlib.suppress(ValueError):
            text = ModelText.load(folder)
            text.tokenizer.decode(text.tokenizer.encode("<think>Hi 東</think>", special=True))
        with contextlib.suppress(ValueError, OSError):
            if name == "tokenizer":
                pieces._read.__wrapped__(folder / "tokenizer.json", 0)
        (folder / f"{name}.json").write_text(good[name])

    return [files["tokenizer_config"], DEEP], one


def poolings() -> Made:
    """The files that say how a folder's vectors are made."""
    from twinline.facts.models import UnsupportedModel, read_config
    from twinline.facts.pooling import FLAGS, MODES, pooling_folder, read_pooling, shorter

    folder = scratch()
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = ("Transformer", "Pooling", "Normalize")
    files: dict[str, Any] = {
        "modules.json": [{"idx": i, "path": f"{i}_{n}" if i else "", "type": f"st.{n}"} for i, n in enumerate(names)],
        "1_Pooling/config.json": {flag: mode == "mean" for flag, mode in FLAGS.items()} | {"pooling_mode": None},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config.json": {"hidden_size": 8, "is_causal": True, "auto_map": {}, "matryoshka_dimensions": [4, 2]},
    }
    good = {name: json.dumps(said).encode() for name, said in files.items()}
    for name, said in good.items():
        (folder / name).write_bytes(said)

    def one(given: Given) -> None:
        name = given.one_of(list(files))
        (folder / name).write_bytes(given.altered([files[name]]))
        with contextlib.suppress(UnsupportedModel):
            found = read_pooling(folder)
            assert found is not None and found.mode in MODES and (found.longest or 1) > 0
        with contextlib.suppress(UnsupportedModel):
            assert ".." not in Path(pooling_folder(folder) or "").parts
        with contextlib.suppress(UnsupportedModel):
            may = shorter(read_config(folder))
            assert may is None or all(size > 0 for size in may.sizes)
        (folder / name).write_bytes(good[name])

    return list(files.values()), one


def gguf() -> Made:
    from tests.lines.drivers import test_pieces

    from twinline.lines.drivers import llamacpp, pieces
    from twinline.lines.drivers.gguf import metadata

    path = scratch() / "m.gguf"

    def one(given: Given) -> None:
        path.write_bytes(given.rest())
        llamacpp.default_context(path)
        for read in (lambda: metadata(path, lambda name: True), lambda: pieces._read.__wrapped__(path, 0)):
            with contextlib.suppress(ValueError, OSError):
                read()

    whole = test_pieces.gguf(path, ["a", "<0xE6>", "Ġ"], "gpt2", [1, 6, 1]).read_bytes()
    nested = whole[:24] + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000
    return [whole, nested], one
