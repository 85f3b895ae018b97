"""From a checkpoint folder to a model in memory: one tensor at a time, each part sealed as soon as it is whole.

Owns which tensor goes where. Never holds two copies of more than one part's weights: tensors are read from the file to
their place, and given to the provider at once. Everything wrong with a file is an UnsupportedModel with one line that
names the file or the tensor.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twinline.engine.models import tables
from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.models.forms import Forms, Piece, apart, parameters_with_form
from twinline.engine.models.half_range import exponent_for, match_norms, shrink
from twinline.engine.models.parts import Part
from twinline.engine.models.shards import Memory
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.quantized import Quantized, quantize
from twinline.engine.ops.registry import Ops
from twinline.engine.quant.matrices import Matrix, matrix
from twinline.facts.models import Latent, ModelSpec, UnsupportedModel
from twinline.facts.quantization import Quantization, read_quantization
from twinline.facts.weight_form import BLOCK, PLAIN, WeightForm


@dataclass(frozen=True)
class Place:
    """Where one checkpoint tensor goes: the `source`-th run of rows of a parameter, or of one expert's matrix in it;
    all rows if `source` is None."""

    parameter: str
    expert: int | None
    source: int | None


def table_for(spec: ModelSpec) -> tables.Table:
    if isinstance(spec.attention, Latent) and not spec.attention.q_rank:
        return tables.DEEPSEEK_PLAIN_QUERY
    return tables.TABLES[spec.family]


def has_other_head(directory: Path, spec: ModelSpec) -> bool:
    """Whether a checkpoint holds an output head that is not its embedding."""
    head, embedding = (table_for(spec)[name][0] for name in ("head.weight", "embed.weight"))
    with Checkpoint(directory) as checkpoint:
        return head in checkpoint and embedding in checkpoint and not checkpoint.same(head, embedding)


def places(spec: ModelSpec, parameters: Iterator[str]) -> dict[str, Place]:
    """Every checkpoint tensor that the model needs, and its place."""
    table, found = table_for(spec), {}
    for name in parameters:
        if name == "head.weight" and spec.tied:
            continue
        index, templates = _templates(name, spec, table)
        for at, template in enumerate(templates):
            source = at if len(templates) > 1 else None
            filled = template.replace("{i}", index)
            if "{e}" not in filled:
                found[filled] = Place(name, None, source)
                continue
            assert spec.experts is not None
            for e in range(spec.experts.count):
                found[filled.replace("{e}", str(e))] = Place(name, e, source)
    return found


def _templates(name: str, spec: ModelSpec, table: tables.Table) -> tuple[str, tuple[str, ...]]:
    """A parameter's layer number and the checkpoint's names for it; the prediction layer's number is past the last."""
    if name in tables.PREDICTOR:
        return str(spec.layers), tables.PREDICTOR[name]
    name = name.replace("predictor.layer.", f"layers.{spec.layers}.")
    layer = re.match(r"layers\.(\d+)\.", name)
    return layer[1] if layer else "", table[re.sub(r"^layers\.\d+\.", "layers.{i}.", name)]


class _Filling:
    """One parameter while its pieces arrive, in any order: in the model's dtype, or as numbers and scales of `form`."""

    def __init__(
        self,
        parameter: nn.Parameter,
        device: torch.device,
        tensors: int,
        experts: int | None,
        memory: Memory,
        form: WeightForm = PLAIN,
    ):
        shape = tuple(parameter.shape)
        numbers = torch.float8_e4m3fn if form.kind == "fp8" else torch.int8
        dtype = parameter.dtype if form.kind == "plain" else numbers
        on_host = device.type == "cpu" and parameter.numel() > 0
        self.data = memory.empty(shape, dtype) if on_host else torch.empty(shape, dtype=dtype, device=device)
        self.form, self.dtype, self.scales = form, parameter.dtype, None
        if form.kind != "plain":
            self.scales = torch.empty((*shape[:-2], *form.scales(*shape[-2:])), device=device)
        self.pieces: tuple[int, ...] = parameter.pieces or (parameter.shape[-2 if experts else 0],)  # type: ignore[attr-defined]
        self.waiting = tensors

    def put(self, checkpoint: Checkpoint, place: Place, matrix: Matrix, memory: Memory) -> None:
        """Reads a matrix to its place: straight there if nothing has to be converted."""
        name = matrix.name
        target = self._part(self.data, place)
        if tables.ONE_ROW.search(name):
            target = target[None]
        if matrix.shape != target.shape:
            raise UnsupportedModel(
                f"{name}: shape {list(matrix.shape)} where the configuration asks for {list(target.shape)}"
            )
        self.waiting -= 1
        if not matrix.plain:
            decoded = matrix.read()
            if self.scales is None:
                target.copy_(decoded.values(target.dtype))
            else:
                self._put_numbers(place, target, *decoded.as_form(self.form))
            return
        dtype = checkpoint.dtype(name)
        if not dtype.is_floating_point or dtype.itemsize == 1:
            raise UnsupportedModel(
                f"{name} holds {dtype}: the packed weights of a quantiser that config.json does not name"
            )
        if self.scales is not None:
            self._put_numbers(place, target, *quantize(checkpoint.read(name).float(), self.form))
        elif dtype == target.dtype and target.device.type == "cpu":
            checkpoint.read_into(name, target)
        else:
            target.copy_(checkpoint.read(name, memory))

    def _part(self, whole: Tensor, place: Place, side: int = 1) -> Tensor:
        """The rows of a piece; `side`: how many of them share a row of `whole`."""
        whole = whole if place.expert is None else whole[place.expert]
        if place.source is None:
            return whole
        begin, size = sum(self.pieces[: place.source]), self.pieces[place.source]
        return whole.narrow(0, begin // side, -(-size // side))

    def _put_numbers(self, place: Place, target: Tensor, numbers: Tensor, scales: Tensor) -> None:
        assert self.scales is not None
        # Floats of 8 bits are copied as the bytes that they are.
        target.view(torch.uint8).copy_(numbers.view(torch.uint8))
        self._part(self.scales, place, BLOCK if self.form.kind == "fp8" else 1).copy_(scales)

    def finished(self) -> Tensor | Quantized:
        return self.data if self.scales is None else Quantized(self.data, self.scales, self.dtype)


def load(
    directory: Path,
    spec: ModelSpec,
    ops: Ops,
    device: torch.device,
    context: int,
    forms: Forms | None = None,
    *,
    predictor: bool = False,
) -> Transformer:
    """The model of a checkpoint folder, on `device`, every part packed by its provider and ready to run.

    `forms`: what the parts are kept in where that is not the same for all. Raises UnsupportedModel for missing,
    surplus, misshapen or unreadable tensors.
    """
    model = Transformer(ops, spec, predictor=predictor)
    if forms is not None:
        forms.give(model)
    exponent = exponent_for(ops.facts.dtype, spec)
    match_norms(model, exponent)
    parameters = dict(model.named_parameters())
    wanted = places(spec, iter(parameters))
    filling: dict[str, _Filling] = {}
    tensors = Counter(place.parameter for place in wanted.values())
    unsealed, memory = _owners(model), Memory()
    with Checkpoint(directory) as checkpoint:
        found = matrices(checkpoint, wanted, spec, read_quantization(directory))
        kept = _quantized(model, wanted, found)
        # The head first: of all parts it takes most memory while it is packed, and now nothing else is there yet.
        head = {name for name, place in wanted.items() if place.parameter == "head.weight"}
        for name in sorted(_in_file_order(checkpoint, found), key=lambda name: name not in head):
            place = wanted[name]
            key = place.parameter
            if key not in filling:
                experts = None if place.expert is None or spec.experts is None else spec.experts.count
                filling[key] = _Filling(parameters[key], device, tensors[key], experts, memory, kept.get(key, PLAIN))
            filling[key].put(checkpoint, place, found[name], memory)
            if filling[key].waiting == 0:
                data = filling.pop(key).finished()
                if exponent:
                    shrink(model, key, data, exponent)
                _settle(model, key, data, unsealed)
    if spec.tied and model.head is not None:
        model.head.share(model.embed.weight.data)
    model.ready(context, device)
    return model


def matrices(
    checkpoint: Checkpoint, wanted: dict[str, Place], spec: ModelSpec, declared: Quantization | None
) -> dict[str, Matrix]:
    """What the checkpoint has of each wanted tensor. Raises UnsupportedModel for missing and for surplus ones."""
    found = {name: matrix(checkpoint, name, declared) for name in wanted}
    there = {name: m for name, m in found.items() if m is not None}
    used = {tensor for m in there.values() for tensor in m.tensors}
    _check_names(found.keys() - there.keys(), checkpoint.file_of.keys() - used, spec)
    return there


def made_of(wanted: dict[str, Place], found: dict[str, Matrix]) -> dict[str, list[Piece]]:
    """The matrices of each parameter."""
    last: dict[str, int] = defaultdict(int)
    for place in wanted.values():
        last[place.parameter] = max(last[place.parameter], place.source or 0)
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for name, place in wanted.items():
        pieces[place.parameter].append(Piece(found[name], (place.source or 0) == last[place.parameter]))
    return dict(pieces)


def _quantized(model: Transformer, wanted: dict[str, Place], found: dict[str, Matrix]) -> dict[str, WeightForm]:
    """The parameters that arrive as numbers and scales: they have a form, and some of what they are made of is
    quantized already. (Plain ones are quantized by their provider, when it packs them; and so are those of which a
    square of fp8 would belong to two matrices.)"""
    of, found_forms = made_of(wanted, found), {}
    for path, module in model.named_modules():
        for name in (f"{path}.{own}" for own in parameters_with_form(module)):
            pieces = of.get(name, [])
            if module.form.kind != "plain" and any(not p.matrix.plain for p in pieces) and apart(pieces, module.form):
                found_forms[name] = module.form
    return found_forms


def _in_file_order(checkpoint: Checkpoint, found: dict[str, Matrix]) -> list[str]:
    order = {file: at for at, file in enumerate(checkpoint.files)}

    def where(name: str) -> tuple[int, tuple[int, int]]:
        first = found[name].tensors[0]
        return order[checkpoint.file_of[first]], checkpoint.stored(first).data_offsets

    return sorted(found, key=where)


def _check_names(missing: Set[str], unused: Set[str], spec: ModelSpec) -> None:
    if missing:
        without = f"model.layers.{spec.layers}."
        hint = ": use --speculation ngram or off" if all(name.startswith(without) for name in missing) else ""
        raise UnsupportedModel(f"the checkpoint lacks {len(missing)} tensors, first {min(missing)}{hint}")

    def expected(name: str) -> bool:
        without_head = spec.tied or spec.headless
        if tables.UNUSED.search(name) or (without_head and name in table_for(spec)["head.weight"]):
            return True
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        # DeepSeek's layers past the last are multi-token prediction: loaded when speculation asks for them.
        return spec.family == "deepseek" and layer is not None and int(layer[1]) >= spec.layers

    surplus = sorted(name for name in unused if not expected(name))
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


def _settle(model: Transformer, name: str, data: Tensor | Quantized, unsealed: dict[str, set[str]]) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(data, Quantized):
        assert isinstance(module, Part)
        module.quantized[attribute] = data
    else:
        setattr(module, attribute, nn.Parameter(data, requires_grad=False))
    unsealed[path].discard(name)
    if not unsealed[path] and isinstance(module, Part):
        module.seal()
