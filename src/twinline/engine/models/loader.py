"""From a checkpoint folder to a model in memory: one tensor at a time, each part sealed as soon as it is whole.

Owns which tensor goes where. Never holds two copies of more than one part's weights: tensors are read from the file to
their place, and given to the provider at once. Everything wrong with a file is an UnsupportedModel with one line that
names the file or the tensor.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from twinline.engine.models import tables
from twinline.engine.models.parts import Part
from twinline.engine.models.shards import DTYPES, Memory, Shard, shards
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.registry import Ops
from twinline.facts.models import Latent, ModelSpec, UnsupportedModel


@dataclass(frozen=True)
class Place:
    """Where one checkpoint tensor goes: the `source`-th run of rows of a parameter, or of one expert's matrix in it."""

    parameter: str
    expert: int | None
    source: int


def table_for(spec: ModelSpec) -> tables.Table:
    if spec.family == "llama":
        return tables.LLAMA
    assert isinstance(spec.attention, Latent)
    return tables.DEEPSEEK if spec.attention.q_rank else tables.DEEPSEEK_PLAIN_QUERY


def places(spec: ModelSpec, parameters: Iterator[str]) -> dict[str, Place]:
    """Every checkpoint tensor that the model needs, and its place."""
    table, found = table_for(spec), {}
    for name in parameters:
        if name == "head.weight" and spec.tied:
            continue
        layer = re.match(r"layers\.(\d+)\.", name)
        index = layer[1] if layer else ""
        for source, template in enumerate(table[re.sub(r"^layers\.\d+\.", "layers.{i}.", name)]):
            filled = template.replace("{i}", index)
            if "{e}" not in filled:
                found[filled] = Place(name, None, source)
                continue
            assert spec.experts is not None
            for e in range(spec.experts.count):
                found[filled.replace("{e}", str(e))] = Place(name, e, source)
    return found


class _Filling:
    """One parameter while its pieces arrive, in any order."""

    def __init__(self, parameter: nn.Parameter, device: torch.device, experts: int | None, memory: Memory):
        shape, dtype = tuple(parameter.shape), parameter.dtype
        on_host = device.type == "cpu" and parameter.numel() > 0
        self.data = memory.empty(shape, dtype) if on_host else torch.empty(shape, dtype=dtype, device=device)
        self.pieces: tuple[int, ...] = parameter.pieces or (parameter.shape[-2 if experts else 0],)  # type: ignore[attr-defined]
        self.waiting = len(self.pieces) * (experts or 1)

    def put(self, shard: Shard, place: Place, name: str, memory: Memory) -> None:
        """Reads a tensor of the file to its place: straight there if nothing has to be converted."""
        stored = shard.stored(name)
        dtype = DTYPES.get(stored.dtype)
        if dtype is None or not dtype.is_floating_point:
            raise UnsupportedModel(
                f"{name} holds {dtype or stored.dtype}: packed weights of a quantiser are not supported"
            )
        whole = self.data if place.expert is None else self.data[place.expert]
        target = whole.narrow(0, sum(self.pieces[: place.source]), self.pieces[place.source])
        if stored.shape != target.shape:
            raise UnsupportedModel(
                f"{name}: shape {list(stored.shape)} where the configuration asks for {list(target.shape)}"
            )
        if dtype == target.dtype and target.device.type == "cpu":
            shard.read(name, target)
        else:
            values = memory.empty(stored.shape, dtype)
            shard.read(name, values)
            target.copy_(values)
        self.waiting -= 1


def load(directory: Path, spec: ModelSpec, ops: Ops, device: torch.device, context: int) -> Transformer:
    """The model of a checkpoint folder, on `device`, every part packed by its provider and ready to run.

    Raises UnsupportedModel for missing, surplus, misshapen or unreadable tensors.
    """
    model = Transformer(ops, spec)
    parameters = dict(model.named_parameters())
    wanted = places(spec, iter(parameters))
    files = shards(directory)
    _check_names(wanted, files, spec)
    filling: dict[str, _Filling] = {}
    unsealed, memory = _owners(model), Memory()
    # The head first: of all parts it takes most memory while it is packed, and now nothing else is there yet.
    head = {name for name, place in wanted.items() if place.parameter == "head.weight"}
    for file_name, names in sorted(files.items(), key=lambda file: head.isdisjoint(file[1])):
        with Shard(directory / file_name) as shard:
            for name in sorted(wanted.keys() & names, key=lambda n: (n not in head, shard.stored(n).data_offsets)):
                place = wanted[name]
                key = place.parameter
                if key not in filling:
                    experts = None if place.expert is None or spec.experts is None else spec.experts.count
                    filling[key] = _Filling(parameters[key], device, experts, memory)
                filling[key].put(shard, place, name, memory)
                if filling[key].waiting == 0:
                    _settle(model, key, filling.pop(key).data, unsealed)
    if spec.tied:
        model.head.share(model.embed.weight.data)
    model.ready(context, device)
    return model


def _check_names(wanted: dict[str, Place], files: dict[str, list[str]], spec: ModelSpec) -> None:
    present = {name for names in files.values() for name in names}
    missing = wanted.keys() - present
    if missing:
        raise UnsupportedModel(f"the checkpoint lacks {len(missing)} tensors, first {min(missing)}")

    def expected(name: str) -> bool:
        if tables.UNUSED.search(name) or (name == "lm_head.weight" and spec.tied):
            return True
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        # Layers past the last are multi-token prediction: loaded when speculation asks for them.
        return layer is not None and int(layer[1]) >= spec.layers

    surplus = sorted(name for name in present - wanted.keys() if not expected(name))
    if surplus:
        raise UnsupportedModel(
            f"the checkpoint has {len(surplus)} tensors that {spec.architecture} has no use for, first {surplus[0]}"
        )


def _owners(model: Transformer) -> dict[str, set[str]]:
    """Per module path, the parameters that must be there before it can be sealed."""
    owners: dict[str, set[str]] = defaultdict(set)
    for name, _ in model.named_parameters():
        owners[name.rpartition(".")[0]].add(name)
    return owners


def _settle(model: Transformer, name: str, data: torch.Tensor, unsealed: dict[str, set[str]]) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, attribute, nn.Parameter(data, requires_grad=False))
    unsealed[path].discard(name)
    if not unsealed[path] and isinstance(module, Part):
        module.seal()
