"""The parts that all families share: norms, linear layers, embedding, the gated MLP, rotary tables.

A part declares its parameters (as empty `meta` tensors that the loader fills) and calls bound ops. It knows no file
names, no scheduler and no device. Shape suffixes as in `ops/reference.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from twinline.engine.ops.quantized import Quantized
from twinline.engine.ops.registry import Ops
from twinline.facts.models import ModelSpec, Rope
from twinline.facts.weight_form import WeightForm


def parameter(*shape: int, dtype: torch.dtype, pieces: tuple[int, ...] = ()) -> nn.Parameter:
    """A parameter that the loader will fill: shape and dtype, no memory.

    `pieces`: the rows of each matrix (of each expert's, if experts are stacked) that it is put together from.
    """
    made = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
    made.pieces = pieces  # type: ignore[attr-defined]
    return made


class Part(nn.Module):
    """A module whose weights may be given to a provider for good: `seal` is called once all of them are loaded.

    `quantized`: those parameters that were loaded as numbers and scales, by name, until then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.quantized: dict[str, Quantized] = {}

    def loaded(self, name: str) -> Tensor | Quantized:
        """A parameter as it was loaded, to be packed."""
        return self.quantized.pop(name) if name in self.quantized else getattr(self, name).data

    def seal(self) -> None:
        pass


class Norm(Part):
    def __init__(self, ops: Ops, size: int, eps: float):
        super().__init__()
        self.ops, self.eps = ops, eps
        self.weight = parameter(size, dtype=ops.facts.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream advanced by x: `(norm(residual + x), residual + x)`."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)


class Linear(Part):
    """One matrix, or several with the same input, one above the other; `sizes_out` are the rows of each.

    Kept in `form`, that of the model's layers if none is given.
    """

    def __init__(self, ops: Ops, size_in: int, *sizes_out: int, bias: bool = False, form: WeightForm | None = None):
        super().__init__()
        self.ops = ops
        self.form = ops.facts.weights if form is None else form
        rows, dtype = sum(sizes_out), ops.facts.dtype
        self.weight: nn.Parameter | None = parameter(rows, size_in, dtype=dtype, pieces=sizes_out)
        self.bias = parameter(rows, dtype=dtype, pieces=sizes_out) if bias else None
        self.packed: Any = None

    def seal(self) -> None:
        self.packed = self.ops.linear.pack(self.loaded("weight"), self.form)
        self.weight = None

    def share(self, weight: Tensor) -> None:
        """Uses another part's weight (tied embeddings) in place of its own."""
        self.packed, self.weight = self.ops.linear.pack(weight, self.form), None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.packed, self.bias)


class Embedding(Part):
    def __init__(self, ops: Ops, vocab: int, hidden: int):
        super().__init__()
        self.ops = ops
        self.weight = parameter(vocab, hidden, dtype=ops.facts.dtype)

    def forward(self, ids_N: Tensor) -> Tensor:
        return self.ops.embedding(ids_N, self.weight)


class MLP(Part):
    def __init__(self, ops: Ops, hidden: int, inner: int, bias: bool = False):
        super().__init__()
        self.ops = ops
        self.gate_up = Linear(ops, hidden, inner, inner, bias=bias)
        self.down = Linear(ops, inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.ops.silu_mul(self.gate_up(x)))


def rope_frequencies(rope: Rope) -> tuple[Tensor, float]:
    """Inverse frequencies `[size / 2]` and the factor on cos and sin.

    YaRN: Peng et al., arXiv 2309.00071, section 3; DeepSeek's factor is mscale / mscale_all_dim. Llama 3: the ramp
    between two wavelengths of the Llama 3.1 release.
    """
    plain = rope.theta ** -(torch.arange(0, rope.size, 2, dtype=torch.int64).float() / rope.size)
    if rope.kind == "default":
        return plain, 1.0
    factor = rope["factor"]
    if rope.kind == "linear":
        return plain / factor, 1.0
    before = rope["original_max_position_embeddings"]
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / plain
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = ((before / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * plain / factor + smooth * plain, 1.0

    def dimension(rotations: float) -> float:
        return rope.size * math.log(before / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope["beta_fast"]), dimension(rope["beta_slow"])
    if rope["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    ramp = ((torch.arange(rope.size // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), rope["attention_factor"] or _yarn_factor(rope)


def _yarn_factor(rope: Rope) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1.0

    if rope["mscale"] and rope["mscale_all_dim"]:
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1.0)


class RopeTable:
    """cos and sin of every position, float32 `[context, width / 2]`, made once. Pairs of a head that keep their place
    have the angle 0, to the bit: x * 1 - y * 0 is x."""

    def __init__(self, ops: Ops, spec: ModelSpec, context: int, device: torch.device):
        self.ops = ops
        frequencies, factor = rope_frequencies(spec.rope)
        angles = torch.outer(torch.arange(context).float(), frequencies)
        still = (0, spec.rope.still // 2)
        self.cos = nn.functional.pad(angles.cos() * factor, still, value=1.0).to(device)
        self.sin = nn.functional.pad(angles.sin() * factor, still).to(device)

    def at(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.embedding(positions_N, self.cos), self.ops.embedding(positions_N, self.sin)
