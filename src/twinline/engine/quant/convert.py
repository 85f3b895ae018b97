"""From one variant of a model to another: a folder that can be read in, a folder that others can read out.

Owns what happens to each tensor and in which file it lies. One matrix is in memory at a time. Which matrices are linear
layers is said by `facts/families`; embeddings, heads, norms, routers and what drafts from hidden states stay plain, and
below FP8 the latent's up-projection too, as published checkpoints have it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.ops.quantized import quantize
from twinline.engine.quant.matrices import Matrix, matrix
from twinline.engine.quant.shard_file import Entry, ShardFile
from twinline.engine.quant.variants import NAMES, Variant
from twinline.facts.families import read_anatomy
from twinline.facts.forms import published
from twinline.facts.models import Config, UnsupportedModel, read_config
from twinline.facts.pooling import pooling_folder
from twinline.facts.quantization import Quantization, quantization
from twinline.facts.tensors import Anatomy
from twinline.facts.weight_form import PLAIN, WeightForm

NOT_COPIED = frozenset(
    "config.json model.safetensors.index.json pytorch_model.bin.index.json quantize_config.json quant_config.json "
    "hf_quant_config.json recipe.yaml".split()
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
PACKED = (".qweight", ".weight_packed")


@dataclass(frozen=True)
class Change:
    """What becomes of one matrix or tensor: `entries` in the new folder. `form` is plain for what is not quantized."""

    matrix: Matrix
    entries: tuple[Entry, ...]
    form: WeightForm
    dtype: torch.dtype
    scale: torch.dtype = torch.float32


@dataclass(frozen=True)
class Converted:
    """What was written. `matrices`: how many matrices of each kind there are now; `copied`: how many of them have the
    very numbers of the source. `kept`: linear layers that stay plain since the form cannot hold them."""

    source: Path
    target: Path
    variant: str
    bytes_before: int
    bytes_after: int
    files: int
    tensors: int
    matrices: dict[str, int]
    copied: int
    kept: tuple[str, ...] = field(default=())


def convert(
    source: Path, target: Path, variant: Variant, shard_bytes: int, progress: Callable[[int, int], None]
) -> Converted:
    """Writes `target`, which must not exist, in another variant. `progress` is told bytes written and bytes in all.

    Raises UnsupportedModel for a source that cannot be read. What was begun and not finished is removed.
    """
    if target.exists():
        raise UnsupportedModel(f"{target} exists already: name a folder that does not")
    config = read_config(source)
    with Checkpoint(source) as checkpoint:
        changes = plan(checkpoint, config, variant)
        entries = [entry for change in changes for entry in change.entries]
        files, size = split(entries, shard_bytes), sum(entry.bytes for entry in entries)
        _room(target, size)
        part = target.with_name(target.name + ".part")
        if part.exists():
            raise UnsupportedModel(f"{part} exists: another conversion is under way, or remove it")
        part.mkdir(parents=True)
        try:
            _write(checkpoint, changes, files, part, progress)
            kept = sorted({"lm_head", *(c.matrix.name.removesuffix(".weight") for c in changes if _stays(c))})
            text = json.dumps(new_config(config, variant, kept, _plain(config, variant)), indent=2)
            (part / "config.json").write_text(text + "\n", "utf-8")
            _copy_rest(source, part)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part)
            raise
        linear = linear_names(config, variant)
        return Converted(
            source,
            target,
            str(variant),
            sum(_size(checkpoint, name) for name in checkpoint.file_of),
            size,
            len(files),
            len(entries),
            dict(Counter(str(c.form) if c.form != PLAIN else NAMES[c.dtype] for c in changes if _is_matrix(c.matrix))),
            sum(c.form != PLAIN and c.matrix.form == c.form for c in changes),
            tuple(c.matrix.name for c in changes if c.matrix.name in linear and c.form != variant.form),
        )


def plan(checkpoint: Checkpoint, config: Config, variant: Variant) -> list[Change]:
    """What becomes of every tensor, in the order of the source's files. Raises UnsupportedModel."""
    declared, linear = quantization(config), linear_names(config, variant)
    plain, own = _plain(config, variant), _own_types(config)
    new = new_config(config, variant, [], plain)
    wide = published(read_anatomy(new)).matrices if variant.form != PLAIN else None
    changes = []
    for found in everything(checkpoint, declared):
        if found.plain and found.name in linear and not _is_plain(checkpoint.dtype(found.name)):
            raise UnsupportedModel(
                f"{found.name} holds {checkpoint.dtype(found.name)}: packed weights that config.json does not name"
            )
        if found.name in linear and variant.form != PLAIN and variant.fits(found.shape):
            scale = _scale_type(checkpoint, found, variant, torch.float32 if wide and wide.scale == "F32" else plain)
            stem = found.name.removesuffix("weight")
            parts = variant.parts(found.shape, scale)
            entries = tuple(Entry(stem + p.suffix, NAMES[p.dtype], p.dtype.itemsize, p.shape) for p in parts)
            changes.append(Change(found, entries, variant.form, plain, scale))
            continue
        if found.plain and not checkpoint.dtype(found.name).is_floating_point and found.name not in linear:
            stored = checkpoint.stored(found.name)
            entry = Entry(found.name, stored.dtype, checkpoint.dtype(found.name).itemsize, found.shape)
            changes.append(Change(found, (entry,), PLAIN, checkpoint.dtype(found.name)))
            continue
        dtype = torch.float32 if own.get(found.name) == "F32" else plain
        changes.append(Change(found, (Entry(found.name, NAMES[dtype], dtype.itemsize, found.shape),), PLAIN, dtype))
    return changes


def everything(checkpoint: Checkpoint, declared: Quantization | None) -> list[Matrix]:
    """Every matrix and every other tensor of a checkpoint, once, in the order of its files; quantized ones under the
    names of plain ones."""
    found: dict[str, Matrix] = {}
    used: set[str] = set()
    for file in checkpoint.files:
        for name in checkpoint.in_order(file):
            logical = next((name.removesuffix(end) + ".weight" for end in PACKED if name.endswith(end)), name)
            one = matrix(checkpoint, logical, declared) if logical.endswith(".weight") else None
            found[logical] = one or Matrix(name, checkpoint.stored(name).shape, (name,))
            used |= set(one.tensors) - {name} if one else set()
    return [one for one in found.values() if one.name not in used]


def linear_names(config: Config, variant: Variant) -> set[str]:
    """Linear layers that the variant stores in its form."""
    anatomy = _anatomy(config)
    absorbed_too = variant.form.kind == "fp8"
    return {name for t in anatomy.tensors if t.linear and (absorbed_too or not t.absorbed) for name in t.names()}


def _anatomy(config: Config) -> Anatomy:
    return read_anatomy({k: v for k, v in config.items() if k not in ("quantization_config", "compression_config")})


def _own_types(config: Config) -> dict[str, str]:
    """Tensors whose type is not the checkpoint's: a router's correction bias is float32."""
    return {name: t.dtype for t in _anatomy(config).tensors if t.dtype for name in t.names()}


def _plain(config: Config, variant: Variant) -> torch.dtype:
    if variant.plain is not None:
        return variant.plain
    return torch.float16 if str(config.get("dtype") or config.get("torch_dtype")) == "float16" else torch.bfloat16


def _scale_type(checkpoint: Checkpoint, found: Matrix, variant: Variant, usual: torch.dtype) -> torch.dtype:
    """Scales that are copied keep their type; new ones are as published checkpoints have them."""
    if variant.form.kind == "int4":
        return torch.bfloat16
    if found.form != variant.form:
        return usual
    stored = next(t for t in found.tensors if t.endswith(("weight_scale", "weight_scale_inv", "scales")))
    dtype = checkpoint.dtype(stored)
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32


def split(entries: list[Entry], most: int) -> list[list[Entry]]:
    """Runs of entries that come to at most `most` bytes each; one that is larger lies alone."""
    files: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.bytes > most:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.bytes
    return files


def new_config(config: Config, variant: Variant, kept: list[str], plain: torch.dtype) -> dict[str, Any]:
    """`config.json` of the new folder."""
    new = {k: v for k, v in config.items() if k not in ("quantization_config", "compression_config")}
    key = "dtype" if "dtype" in new or "torch_dtype" not in new else "torch_dtype"
    new[key] = str(plain).removeprefix("torch.")
    declared = variant.config(kept)
    return new if declared is None else new | {"quantization_config": declared}


def _room(target: Path, size: int) -> None:
    """Raises UnsupportedModel if the disk has no room for it."""
    there = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise UnsupportedModel(f"{target} needs {size / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free there")


def _write(
    checkpoint: Checkpoint,
    changes: list[Change],
    files: list[list[Entry]],
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    where = {entry.name: name for name, entries in zip(names, files, strict=True) for entry in entries}
    total, done = sum(entry.bytes for entries in files for entry in entries), 0
    upcoming = zip(names, files, strict=True)
    current, file = "", None
    try:
        for change in changes:
            for entry, tensor in zip(change.entries, _tensors(checkpoint, change), strict=True):
                if where[entry.name] != current:
                    if file is not None:
                        file.finish()
                    current, entries = next(upcoming)
                    file = ShardFile(folder / current, entries)
                assert file is not None
                file.add(entry.name, tensor)
                done += entry.bytes
            progress(done, total)
        if file is not None:
            file.finish()
    finally:
        if file is not None:
            file.close()
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _tensors(checkpoint: Checkpoint, change: Change) -> list[Tensor]:
    found = change.matrix
    if change.form == PLAIN:
        values = checkpoint.read(found.name).to(change.dtype) if found.plain else found.read().values(change.dtype)
        if change.dtype.is_floating_point and not values.isfinite().all():
            raise UnsupportedModel(f"{found.name} has values that {str(change.dtype)[6:]} cannot hold, or no numbers")
        return [values]
    if found.plain:
        numbers, scales = quantize(checkpoint.read(found.name).float(), change.form, change.scale)
    else:
        numbers, scales = found.read().as_form(change.form, change.scale)
    return Variant(change.form, None).tensors(numbers, scales.to(change.scale))


def _is_plain(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def _stays(change: Change) -> bool:
    """Whether a quantised variant has to name this module among those that stay plain: a matrix, but no embedding."""
    return change.form == PLAIN and _is_matrix(change.matrix) and "embed" not in change.matrix.name


def _is_matrix(found: Matrix) -> bool:
    return len(found.shape) == 2 and found.name.endswith(".weight")


def _size(checkpoint: Checkpoint, name: str) -> int:
    begin, end = checkpoint.stored(name).data_offsets
    return end - begin


def _copy_rest(source: Path, target: Path) -> None:
    """Tokenizer, templates, what says how vectors are pooled, and all that is neither weights nor about their
    quantization."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in NOT_COPIED and file.suffix not in WEIGHTS:
            shutil.copyfile(file, target / file.name)
    if (folder := pooling_folder(source)) is not None:
        (target / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / folder / "config.json", target / folder / "config.json")
