"""The matrices of a checkpoint, each with the tensors that it is stored in and what they mean.

Owns the layouts of quantised checkpoints: DeepSeek's fp8 blocks, compressed-tensors, GPTQ and AWQ. Knows no model: a
matrix is named as if it were plain, `model.layers.0.mlp.up_proj.weight`. Shape suffixes: N outputs, K inputs, G groups.

Sources: README_WEIGHTS.md of DeepSeek-V3; compressed-tensors' `pack_quantized`; AutoGPTQ's and AutoAWQ's packing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.engine.models.checkpoint import Checkpoint
from twinline.engine.quant.decoded import Decoded, group_form, regrouped, squares
from twinline.engine.quant.packing import from_awq, unpack
from twinline.facts.models import UnsupportedModel
from twinline.facts.quantization import Quantization, Scheme
from twinline.facts.weight_form import WeightForm

FLOATS8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
FP8 = WeightForm("fp8")


@dataclass(frozen=True)
class Matrix:
    """`tensors`: all that it is stored in. `form`: the one of ours that holds it exactly, None if none does; `why`:
    then the reason, else what is worth saying. `decode` is None for a plain tensor."""

    name: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    form: WeightForm | None = None
    why: str = ""
    decode: Callable[[], Decoded] | None = None

    @property
    def plain(self) -> bool:
        return self.decode is None

    def read(self) -> Decoded:
        """A quantized one's numbers and scales. Raises UnsupportedModel for tensors that contradict each other."""
        assert self.decode is not None
        try:
            return self.decode()
        except (IndexError, TypeError, ArithmeticError, RuntimeError, ValueError) as error:
            if isinstance(error, UnsupportedModel):
                raise
            raise UnsupportedModel(f"{self.name} cannot be decoded: {' '.join(repr(error).split()):.100}") from None


def matrix(checkpoint: Checkpoint, name: str, declared: Quantization | None) -> Matrix | None:
    """The matrix of this name; None if the checkpoint has nothing of it. Raises UnsupportedModel for tensors that do
    not belong together, or of a kind that cannot be read."""
    stem = name.removesuffix("weight")
    if declared is None or stem == name:
        return _plain(checkpoint, name) if name in checkpoint else None
    try:
        return _quantized(checkpoint, name, stem, declared)
    except (IndexError, TypeError, ArithmeticError, RuntimeError, ValueError) as error:
        if isinstance(error, UnsupportedModel):
            raise
        raise UnsupportedModel(
            f"{name} cannot be read as {declared.method}'s: {' '.join(repr(error).split()):.100}"
        ) from None


def _quantized(checkpoint: Checkpoint, name: str, stem: str, declared: Quantization) -> Matrix | None:
    if name in checkpoint:
        dtype = checkpoint.dtype(name)
        if dtype in FLOATS8:
            return _fp8(checkpoint, name, stem, declared)
        if dtype == torch.int8 and declared.method == "compressed-tensors":
            return _bytes(checkpoint, name, stem, declared)
        return _plain(checkpoint, name)
    if stem + "weight_packed" in checkpoint and declared.method == "compressed-tensors":
        return _packed(checkpoint, name, stem, declared)
    if stem + "qweight" in checkpoint and declared.method in ("gptq", "awq"):
        return (_gptq if declared.method == "gptq" else _awq)(checkpoint, name, stem, declared)
    return None


def _plain(checkpoint: Checkpoint, name: str) -> Matrix:
    return Matrix(name, checkpoint.stored(name).shape, (name,))


def _shaped(checkpoint: Checkpoint, name: str, *shapes: tuple[int, ...]) -> str:
    """The name, once its tensor is known to have one of these shapes."""
    found = checkpoint.stored(name).shape
    if found not in shapes:
        raise UnsupportedModel(f"{name}: shape {list(found)} where {' or '.join(str(list(s)) for s in shapes)} belongs")
    return name


def _side(checkpoint: Checkpoint, stem: str, *names: str) -> tuple[str, ...]:
    return tuple(stem + name for name in names if stem + name in checkpoint)


def _scales(checkpoint: Checkpoint, name: str) -> Tensor:
    """As float32, which holds every type of scale."""
    scales = checkpoint.read(name)
    if scales.dtype == torch.uint8:  # e8m0, 2 ** (byte - 127): a float's exponent alone, 255 for NaN
        bits = scales.int() << 23
        scales = torch.where(scales == 0, 0x400000, torch.where(scales == 255, 0x7FC00000, bits)).view(torch.float32)
    if not scales.dtype.is_floating_point:
        raise UnsupportedModel(f"{name} holds {scales.dtype}, which is no type of scale")
    scales = scales.float()
    if not bool(scales.isfinite().all()):
        raise UnsupportedModel(f"{name} has scales that are not finite")
    return scales


def _fp8(checkpoint: Checkpoint, name: str, stem: str, declared: Quantization) -> Matrix:
    """`weight_scale_inv` is what to multiply by, whatever its name says (engines.md 3.21); its last row and column are
    of blocks that the matrix does not fill."""
    shape = checkpoint.stored(name).shape
    found = _side(checkpoint, stem, "weight_scale_inv", "weight_scale")
    if len(shape) != 2 or len(found) != 1:
        raise UnsupportedModel(f"{name}: an fp8 matrix needs one tensor of scales, and has {len(found)}")
    rows, columns = shape
    scheme = next((s for s in declared.schemes if s.floats), None)
    if scheme is None:
        raise UnsupportedModel(f"{name} holds fp8, and quantization_config says nothing of it")
    block = scheme.block if scheme.along == "block" else (rows, columns)
    blocks = (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    shapes: dict[str, list[tuple[int, ...]]] = {"block": [blocks], "row": [(rows, 1), (rows,)]}
    allowed = shapes.get(scheme.along, [(), (1,), (1, 1)])
    scales = _shaped(checkpoint, found[0], *allowed)
    normal = checkpoint.dtype(name) == torch.float8_e4m3fn
    by_row = scheme.along == "row"
    fits = not by_row and (scheme.along == "matrix" or (block[0] % 128 == 0 and block[1] % 128 == 0))

    def decode() -> Decoded:
        numbers, read = checkpoint.read(name), _scales(checkpoint, scales)
        if by_row:
            return Decoded(numbers, read.view(rows, 1), columns=torch.zeros(columns, dtype=torch.int64))
        if scheme.along == "matrix":
            read = read.reshape(1, 1).expand(math.ceil(rows / 128), math.ceil(columns / 128)).contiguous()
        elif block != (128, 128):
            smaller = squares(read, block, (rows, columns))
            if smaller is None:
                wide = read.repeat_interleave(block[0], 0)[:rows]
                at = torch.arange(columns) // block[1]
                return Decoded(numbers, wide, columns=at)
            read = smaller
        return Decoded(numbers, read, FP8)

    why = "" if fits and normal else f"{scheme} is not squares of 128 x 128" if normal else "e4m3fnuz is another code"
    tensors = (name, scales, *_inputs(checkpoint, stem))
    return Matrix(name, shape, tensors, FP8 if fits and normal else None, why, decode)


def _integers(numbers: Tensor, scales_NG: Tensor, group: int, columns: Tensor | None = None) -> Decoded:
    """Numbers that fit a byte, in the form that holds them; `group` 0 is a row."""
    form, size = group_form("int8", group)
    if columns is not None or form is None or int(numbers.min()) < -128 or int(numbers.max()) > 127:
        at = columns
        if at is None:
            at = torch.arange(numbers.shape[1]) // group if group else torch.zeros(numbers.shape[1], dtype=torch.int64)
        return Decoded(numbers, scales_NG, columns=at)
    scales = regrouped(scales_NG, group, size, numbers.shape[1])
    assert scales is not None
    return Decoded(numbers.to(torch.int8), scales.contiguous(), form)


def _group_of(checkpoint: Checkpoint, name: str, scales: str, rows: int, inputs: int, schemes: list[Scheme]) -> int:
    """Inputs that share a scale, 0 for a row: the declared number that these scales' shape agrees with."""
    shape = checkpoint.stored(scales).shape
    for scheme in schemes:
        if scheme.along in ("row", "matrix") and shape in ((rows, 1), (rows,), (1,), ()):
            return 0
        if scheme.along == "group" and shape == (rows, math.ceil(inputs / scheme.group)):
            return scheme.group
    raise UnsupportedModel(f"{name}: scales {list(shape)} are not of {', '.join(map(str, schemes)) or 'integers'}")


def _bytes(checkpoint: Checkpoint, name: str, stem: str, declared: Quantization) -> Matrix:
    """compressed-tensors' `int-quantized`: int8 as they are, scales [N, 1] or [N, G]."""
    shape = checkpoint.stored(name).shape
    if len(shape) != 2 or stem + "weight_scale" not in checkpoint:
        raise UnsupportedModel(f"{name}: an int8 matrix needs weight_scale")
    rows, columns = shape
    scales = stem + "weight_scale"
    schemes = [s for s in declared.schemes if not s.floats and s.bits == 8]
    group = _group_of(checkpoint, name, scales, rows, columns, schemes)
    zeros = _side(checkpoint, stem, "weight_zero_point")
    for side in zeros:
        _shaped(checkpoint, side, checkpoint.stored(scales).shape)

    def decode() -> Decoded:
        numbers, read = checkpoint.read(name), _scales(checkpoint, scales)
        read = read.reshape(rows, -1) if read.numel() > 1 else read.reshape(1, 1).expand(rows, 1)
        if zeros:
            offsets = checkpoint.read(zeros[0]).to(torch.int16)
            offsets = offsets.reshape(rows if offsets.numel() > 1 else 1, -1)
            numbers = numbers.to(torch.int16) - _spread(offsets.expand(rows, -1), group, columns)
        return _integers(numbers, read, group)

    form = None if zeros else group_form("int8", group)[0]
    why = "zero points of its own" if zeros else "" if form else f"groups of {group} are none of ours"
    return Matrix(name, shape, (name, scales, *zeros, *_inputs(checkpoint, stem)), form, why, decode)


def _inputs(checkpoint: Checkpoint, stem: str) -> tuple[str, ...]:
    """What is stored for rounding activations, which is done by their own range here."""
    return _side(checkpoint, stem, "input_scale", "input_zero_point", "weight_shape")


def _spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    return per_group if not group else per_group.repeat_interleave(group, 1)[:, :columns]


def _packed(checkpoint: Checkpoint, name: str, stem: str, declared: Quantization) -> Matrix:
    """compressed-tensors' `pack-quantized`: numbers + 2**(bits - 1) in words along the inputs; zero points the same
    way, in words along the outputs."""
    words, scales, size = (stem + n for n in ("weight_packed", "weight_scale", "weight_shape"))
    if scales not in checkpoint or size not in checkpoint:
        raise UnsupportedModel(f"{words} needs weight_scale and weight_shape beside it")
    rows, columns = (int(v) for v in checkpoint.read(_shaped(checkpoint, size, (2,))).tolist())
    width = checkpoint.stored(words).shape[-1]
    bits = next((b for b in (4, 8) if width == math.ceil(columns * b / 32)), 0)
    schemes = [s for s in declared.schemes if not s.floats and s.bits == bits]
    if not schemes:
        raise UnsupportedModel(f"{words}: {width} words for {columns} inputs are of no declared number of bits")
    _shaped(checkpoint, words, (rows, width))
    group = _group_of(checkpoint, name, scales, rows, columns, schemes)
    zeros, order = _side(checkpoint, stem, "weight_zero_point"), _side(checkpoint, stem, "weight_g_idx")
    jumbled = _columns(checkpoint, order, columns, group)
    for side in zeros:
        _shaped(checkpoint, side, (math.ceil(rows * bits / 32), math.ceil(columns / group) if group else 1))

    def decode() -> Decoded:
        numbers, read = unpack(checkpoint.read(words), bits, 1, columns), _scales(checkpoint, scales).reshape(rows, -1)
        if not zeros:
            return _integers(numbers - 2 ** (bits - 1), read, group, jumbled)
        offsets = unpack(checkpoint.read(zeros[0]), bits, 0, rows).view(rows, -1)
        spread = _spread(offsets, group, columns) if jumbled is None else offsets[:, jumbled]
        return _integers(numbers - spread, read, group, jumbled)

    tensors = (words, scales, size, *zeros, *order, *_side(checkpoint, stem, "input_scale", "input_zero_point"))
    narrow = bits == 4 and not zeros and checkpoint.dtype(scales) == torch.bfloat16
    form, why = _kept(bits, group, jumbled, bool(zeros) and bits == 8)
    if form is not None and narrow and (four := group_form("int4", group)[0]) is not None:
        return Matrix(name, (rows, columns), tensors, four, why, lambda: _four(decode(), four))
    if form is not None and bits == 4:
        why = "zero points" if zeros else f"{str(checkpoint.dtype(scales)).removeprefix('torch.')} scales"
    return Matrix(name, (rows, columns), tensors, form, why, decode)


def _four(decoded: Decoded, form: WeightForm) -> Decoded:
    assert decoded.form is not None
    scales = regrouped(decoded.scales, decoded.form.group, form.group, decoded.numbers.shape[1])
    assert scales is not None
    return Decoded(decoded.numbers, scales.contiguous(), form)


def _kept(bits: int, group: int, jumbled: Tensor | None, wide: bool) -> tuple[WeightForm | None, str]:
    """The int8 form that holds such numbers exactly, and otherwise why none does."""
    if jumbled is not None:
        return None, "its inputs are grouped in another order (act order)"
    if wide:
        return None, f"{bits} bits less a zero point are more than a byte"
    form = group_form("int8", group)[0]
    return form, "" if form else f"groups of {group} are none of ours"


def _columns(checkpoint: Checkpoint, order: tuple[str, ...], inputs: int, group: int) -> Tensor | None:
    """The group of each input, where it is not the next one after every `group` inputs; None where it is."""
    if not order:
        return None
    found = checkpoint.read(_shaped(checkpoint, order[0], (inputs,))).to(torch.int64)
    if bool((found < 0).all()):  # compressed-tensors' placeholder
        return None
    groups = math.ceil(inputs / group) if group else 1
    if bool((found < 0).any()) or int(found.max()) >= groups:
        raise UnsupportedModel(f"{order[0]} names groups that are not there")
    regular = torch.arange(inputs) // group if group else torch.zeros(inputs, dtype=torch.int64)
    return None if torch.equal(found, regular) else found


def _gptq(checkpoint: Checkpoint, name: str, stem: str, declared: Quantization) -> Matrix:
    """GPTQ: words `[K / each, N]` along the inputs, zero points `[G, N / each]` along the outputs, scales `[G, N]`."""
    scheme = declared.scheme
    bits, each = scheme.bits, 32 // scheme.bits
    words, zeros, scales = (stem + n for n in ("qweight", "qzeros", "scales"))
    columns, rows = checkpoint.stored(words).shape[0] * each, checkpoint.stored(words).shape[-1]
    group = scheme.group if scheme.group < columns else 0
    groups = math.ceil(columns / group) if group else 1
    for side, shape in ((zeros, (groups, math.ceil(rows / each))), (scales, (groups, rows))):
        _shaped(checkpoint, side, shape)
    order = _side(checkpoint, stem, "g_idx")
    if declared.ordered and not order and groups > 1:
        raise UnsupportedModel(f"{words}: desc_act is declared, and g_idx is not there")
    jumbled = _columns(checkpoint, order, columns, group)

    def decode() -> Decoded:
        numbers = unpack(checkpoint.read(words), bits, 0).t().contiguous()
        # The first format stores zero points less one, in `bits` bits: 15 stands for 0.
        offsets = (unpack(checkpoint.read(zeros), bits, 1, rows) + declared.zero_offset) & (2**bits - 1)
        offsets_NG = offsets.t()
        spread = _spread(offsets_NG, group, columns) if jumbled is None else offsets_NG[:, jumbled]
        return _integers(numbers - spread, _scales(checkpoint, scales).t().contiguous(), group, jumbled)

    # Of 8 bits, only zero points of 128 leave numbers that fit a byte.
    wide = bits == 8 and not bool(
        ((unpack(checkpoint.read(zeros), bits, 1, rows) + declared.zero_offset) & 255 == 128).all()
    )
    form, why = _kept(bits, group, jumbled, wide)
    if form is not None and bits == 4:
        why = "zero points, and float16 scales"
    tensors = (words, zeros, scales, *order, *_zero_bias(checkpoint, stem))
    return Matrix(name, (rows, columns), tensors, form, why, decode)


def _zero_bias(checkpoint: Checkpoint, stem: str) -> tuple[str, ...]:
    """AutoGPTQ writes a bias of zeros where a layer has none."""
    found = _side(checkpoint, stem, "bias")
    return found if found and not bool(checkpoint.read(found[0]).any()) else ()


def _awq(checkpoint: Checkpoint, name: str, stem: str, declared: Quantization) -> Matrix:
    """AutoAWQ's `gemm`: words `[K, N / 8]` along the outputs in an order of its own, zero points `[G, N / 8]` likewise,
    scales `[G, N]`."""
    words, zeros, scales = (stem + n for n in ("qweight", "qzeros", "scales"))
    columns, rows = checkpoint.stored(words).shape[0], checkpoint.stored(words).shape[-1] * 8
    group = declared.scheme.group if declared.scheme.group < columns else 0
    groups = math.ceil(columns / group) if group else 1
    offsets = _side(checkpoint, stem, "qzeros")
    for side, shape in ((zeros, (groups, rows // 8)), (scales, (groups, rows))):
        if side != zeros or offsets:
            _shaped(checkpoint, side, shape)

    def decode() -> Decoded:
        numbers = from_awq(checkpoint.read(words)).t().contiguous()
        if offsets:
            spread = _spread(from_awq(checkpoint.read(zeros)).t(), group, columns)
        else:
            spread = torch.full((), 8, dtype=torch.int16)
        return _integers(numbers - spread, _scales(checkpoint, scales).t().contiguous(), group)

    form, why = _kept(4, group, None, False)
    why = why or "zero points, and float16 scales"
    return Matrix(name, (rows, columns), (words, scales, *offsets), form, why, decode)
