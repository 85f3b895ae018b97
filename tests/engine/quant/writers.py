"""Quantized checkpoints written once more, number by number, from what their formats say: the judge of our readers.

Knows nothing of the engine. A writer takes plain weights and gives the tensors of a checkpoint, and beside them the
exact values (float64) that they stand for. Sources: DeepSeek-V3's README_WEIGHTS.md; `pack` of AutoGPTQ's linear layer;
`from_linear` of AutoAWQ's WQLinear_GEMM; the OCP 8-bit floating point specification (E4M3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def e4m3(byte: int) -> float:
    """The value of a byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, two NaN."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = torch.tensor([e4m3(byte) for byte in range(256)], dtype=torch.float64)


@dataclass
class Written:
    """`tensors` of the file, `truth` [name as if plain] exact values, `config` for `quantization_config`."""

    config: dict[str, object]
    tensors: Weights = field(default_factory=dict)
    truth: Weights = field(default_factory=dict)


def is_matrix(name: str) -> bool:
    """What quantisers change: linear layers, not the embedding, the head, norms or the router."""
    kept = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "bias", "eh_proj", "shared_head")
    return name.endswith(".weight") and not any(part in name for part in kept)


def written(weights: Weights, config: dict[str, object], matrix: Callable[[Tensor], tuple[Weights, Tensor]],
            quantized: Callable[[str], bool] = is_matrix) -> Written:  # fmt: skip
    """`matrix` gives a matrix's tensors, by what follows the module's name, and its values."""
    out = Written(config)
    for name, tensor in weights.items():
        if not quantized(name):
            out.tensors[name], out.truth[name] = tensor, tensor.double()
            continue
        parts, out.truth[name] = matrix(tensor)
        out.tensors |= {name.removesuffix("weight") + part: t.contiguous() for part, t in parts.items()}
    return out


# fp8.


def nearest_e4m3(values: Tensor) -> Tensor:
    """Bytes of the nearest values; exact halves go to the even byte."""
    positive = E4M3[:127]
    size = values.abs()
    above = torch.searchsorted(positive, size).clamp(max=126)
    below = (above - 1).clamp(min=0)
    to_above, to_below = positive[above] - size, size - positive[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    byte = torch.where(up, above, below)
    return (byte + torch.where(values < 0, 128, 0)).to(torch.uint8)


def fp8_blocks(weight: Tensor, *, power_of_two: bool = False) -> tuple[Weights, Tensor]:
    rows, columns = weight.shape
    data = torch.zeros(rows, columns, dtype=torch.uint8)
    scales = torch.zeros(math.ceil(rows / 128), math.ceil(columns / 128))
    truth = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            block = weight[at].double()
            scale = block.abs().max().float() / 448
            if power_of_two:
                scale = 2 ** scale.log2().ceil()
            scales[i, j], data[at] = scale, nearest_e4m3(block / scale.double())
            truth[at] = E4M3[data[at].long()] * scale.double()
    return {"weight": data.view(torch.float8_e4m3fn), "weight_scale_inv": scales}, truth


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def fp8(weights: Weights, **how: bool) -> Written:
    config = FP8 | ({"scale_fmt": "ue8m0"} if how.get("power_of_two") else {})
    return written(weights, config, lambda w: fp8_blocks(w, **how))


# Words of 32 bits.


def words(numbers: list[int], bits: int) -> int:
    """One signed word; the first number in the lowest bits."""
    word = sum(number << (bits * place) for place, number in enumerate(numbers))
    return word - 2**32 if word >= 2**31 else word


def pack_rows(numbers: Tensor, bits: int) -> Tensor:
    """`[N, K]` -> `[N, ceil(K / each)]`."""
    each = 32 // bits
    lists = numbers.long().tolist()
    return torch.tensor([[words(row[i : i + each], bits) for i in range(0, len(row), each)] for row in lists],
                        dtype=torch.int64).to(torch.int32)  # fmt: skip


@dataclass
class Levels:
    """A matrix as levels 0 .. 2**bits - 1 with a scale and a zero point for each group of a row."""

    levels: Tensor
    scales: Tensor
    zeros: Tensor
    group: Tensor  # of each input

    @property
    def truth(self) -> Tensor:
        return (self.levels - self.zeros[:, self.group]).double() * self.scales[:, self.group].double()


def levels(weight: Tensor, bits: int, size: int, scale_dtype: torch.dtype, *, symmetric: bool,
           group: Tensor | None = None) -> Levels:  # fmt: skip
    rows, columns = weight.shape
    size = size if size > 0 else columns
    group = torch.arange(columns) // size if group is None else group
    count, top = int(group.max()) + 1, 2**bits - 1
    out, scales, zeros = (torch.zeros(rows, n, dtype=torch.int64) for n in (columns, count, count))
    scales = scales.to(scale_dtype)
    for g in range(count):
        here = group == g
        block = weight[:, here].double()
        high, low = block.amax(1).clamp(min=0), block.amin(1).clamp(max=0)
        if symmetric:
            scale = (torch.maximum(high, -low) * 2 / top).to(scale_dtype)
            zero = torch.full((rows,), 2 ** (bits - 1))
        else:
            scale = ((high - low) / top).to(scale_dtype)
            zero = (-low / scale.double()).round().long().clamp(1, top)
        scales[:, g], zeros[:, g] = scale, zero
        out[:, here] = ((block / scale.double()[:, None]).round().long() + zero[:, None]).clamp(0, top)
    return Levels(out, scales, zeros, group)


def gptq(weights: Weights, *, bits: int = 4, size: int = 32, symmetric: bool = True, act_order: bool = False,
         second: bool = False) -> Written:  # fmt: skip
    """`size` -1: a whole row. The first format stores zero points less one."""

    def matrix(weight: Tensor) -> tuple[Weights, Tensor]:
        columns = weight.shape[1]
        group = torch.arange(columns) // (size if size > 0 else columns)
        if act_order:
            group = group[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        found = levels(weight, bits, size, torch.float16, symmetric=symmetric, group=group)
        stored = found.zeros if second else found.zeros - 1
        return {
            "qweight": pack_rows(found.levels, bits).t(), "qzeros": pack_rows(stored.t(), bits),
            "scales": found.scales.t(), "g_idx": group.int(),
        }, found.truth  # fmt: skip

    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "desc_act": act_order}
    return written(weights, config | ({"checkpoint_format": "gptq_v2"} if second else {}), matrix)


def awq(weights: Weights, *, size: int = 32) -> Written:
    def in_order(numbers: Tensor) -> Tensor:
        shuffled = numbers.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1)
        return pack_rows(shuffled, 4)

    def matrix(weight: Tensor) -> tuple[Weights, Tensor]:
        found = levels(weight, 4, size, torch.float16, symmetric=False)
        return {"qweight": in_order(found.levels.t()), "qzeros": in_order(found.zeros.t()),
                "scales": found.scales.t()}, found.truth  # fmt: skip

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    return written(weights, config, matrix)


def compressed(kind: str, bits: int, size: int, symmetric: bool, **weights: object) -> dict[str, object]:
    scheme = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if size else "channel",
              "group_size": size or None, "dynamic": False} | weights  # fmt: skip
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme,
                                      "input_activations": inputs if kind == "int-quantized" else None}},
    }  # fmt: skip


def w8a8(weights: Weights) -> Written:
    def matrix(weight: Tensor) -> tuple[Weights, Tensor]:
        scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
        numbers = (weight.double() / scale.double()).round().clamp(-128, 127)
        return {"weight": numbers.to(torch.int8), "weight_scale": scale}, numbers * scale.double()

    return written(weights, compressed("int-quantized", 8, 0, True), matrix)


def w4a16(weights: Weights, *, size: int = 32, symmetric: bool = True) -> Written:
    def matrix(weight: Tensor) -> tuple[Weights, Tensor]:
        found = levels(weight, 4, size, torch.bfloat16, symmetric=symmetric)
        parts = {"weight_packed": pack_rows(found.levels, 4), "weight_scale": found.scales,
                 "weight_shape": torch.tensor(weight.shape)}  # fmt: skip
        if not symmetric:
            parts["weight_zero_point"] = pack_rows(found.zeros.t(), 4).t()
        return parts, found.truth

    return written(weights, compressed("pack-quantized", 4, size, symmetric), matrix)
