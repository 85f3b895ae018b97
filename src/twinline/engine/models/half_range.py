"""float16 on models that were not trained in it: their residual stream can leave its range (engines.md 3.15).

Owns the remedy: the stream is kept at 2**-EXPONENT of its size, all along. What is added to it is made that much
smaller once, in the weights, and norms that read it get an epsilon to match: an RMS norm of x / s with eps / s**2 is
that of x with eps. Powers of two change no bit of a value, unless it falls below float16's least one. MLPs are made
smaller where their inner values arise (the `up` half), since these grow as well. (vLLM divides by DeepSeek's routed
scale, in its dense layers.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from twinline.engine.models.parts import Norm
from twinline.engine.models.transformer import Layer, Transformer
from twinline.engine.ops.quantized import Quantized
from twinline.facts.models import ModelSpec, UnsupportedModel
from twinline.facts.weight_form import BLOCK

EXPONENT = 4  # 65,504 becomes 1,048,064
WHOLE = re.compile(r"attention\.out\.(weight|bias)|after_(attention|mlp)\.weight|mlp\.(shared\.)?down\.bias")
UPPER = re.compile(r"mlp\.(shared\.)?gate_up\.(weight|bias)|mlp\.experts\.gate_up")


def exponent_for(dtype: torch.dtype, spec: ModelSpec) -> int:
    """0 where the stream needs no care: another dtype, or a checkpoint in float16, which was made to fit."""
    return EXPONENT if dtype == torch.float16 and spec.dtype != "float16" else 0


def shrink(model: Transformer, name: str, data: Tensor | Quantized, exponent: int) -> None:
    """Makes a loaded parameter smaller in place, before it is packed, if what it gives goes into the stream.

    Raises UnsupportedModel where a scale belongs to values of both kinds.
    """
    if name == "norm.weight" and model.spec.tied and isinstance(data, Tensor):
        data *= 2.0**exponent  # the head is the embedding, which is smaller
        return
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if found:
        layer = model.layers[int(found[1])]
        assert isinstance(layer, Layer)
        if found[2].startswith("attention.out.") and layer.after_attention is not None:
            return
    if name == "embed.weight" or (found and WHOLE.fullmatch(found[2])):
        (data if isinstance(data, Tensor) else data.scales).mul_(2.0**-exponent)
    elif found and UPPER.fullmatch(found[2]):
        _upper(name, data).mul_(2.0**-exponent)


def _upper(name: str, data: Tensor | Quantized) -> Tensor:
    """The second half of the rows, or of their scales; of stacked experts, of each."""
    rows = (data if isinstance(data, Tensor) else data.numbers).shape
    axis = 0 if len(rows) < 3 else 1
    if isinstance(data, Tensor):
        return data.narrow(axis, rows[axis] // 2, rows[axis] // 2)
    side = BLOCK if data.numbers.dtype == torch.float8_e4m3fn else 1
    if rows[axis] // 2 % side:
        raise UnsupportedModel(
            f"{name}: {rows[axis] // 2} rows of gate end inside a block of {side}, and float16 needs a smaller scale "
            "for up alone: use --weights plain"
        )
    begin = rows[axis] // 2 // side
    return data.scales.narrow(axis, begin, data.scales.shape[axis] - begin)


def _norms(model: Transformer) -> Iterator[Norm]:
    """Those that read the stream, or what is on its way to it."""
    for layer in model.layers:
        assert isinstance(layer, Layer)
        yield from (layer.input_norm, layer.mlp_norm)
        if layer.after_mlp is not None:
            yield layer.after_mlp
    yield model.norm
    if model.predictor is not None:
        yield model.predictor.embedding_norm


def match_norms(model: Transformer, exponent: int) -> None:
    """Gives the norms an epsilon that belongs to a smaller stream."""
    for norm in _norms(model):
        norm.eps *= 0.25**exponent
