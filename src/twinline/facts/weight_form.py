"""The forms in which our engine keeps the weights of linear layers: plain, or quantized when they are loaded.

Owns the names that people write (`--weights`), and what a matrix weighs in each form. Must not know how a form is
packed or computed with (the engine's `ops/quantized.py`), nor the forms of published checkpoints (`forms.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["plain", "int8", "int4", "fp8"]

GROUPS: dict[str, tuple[int, ...]] = {"int8": (0, 32, 64, 128), "int4": (32, 64, 128)}  # 0: a whole row
GROUP = {
    "int8": 0,
    "int4": 32,
}  # where nobody says: rounding to nearest, with no data to correct it, wants small groups
DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16",
          "fp16": "float16"}  # fmt: skip
PLAIN_NAMES = ("auto", "plain")
SCALE_BYTES = {"int8": 4, "int4": 2, "fp8": 4}
BLOCK = 128  # side of the square that shares a scale in fp8, as DeepSeek's checkpoints have it


@dataclass(frozen=True)
class WeightForm:
    """`plain` is the model's dtype. `group`: inputs of a row that share a scale, 0 for all of them."""

    kind: Kind = "plain"
    group: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.group}" if self.group else self.kind

    def scales(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of a matrix's scales. Raises ValueError for a plain form."""
        if self.kind == "plain":
            raise ValueError("a plain weight has no scales")
        if self.kind == "fp8":
            return math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)
        return rows, math.ceil(columns / self.group) if self.group else 1

    def bytes(self, rows: int, columns: int, plain: int) -> int:
        """Of a matrix with its scales; `plain` is the size of one value of the model's dtype."""
        if self.kind == "plain":
            return rows * columns * plain
        values = math.ceil(columns / 2) if self.kind == "int4" else columns
        return rows * values + math.prod(self.scales(rows, columns)) * SCALE_BYTES[self.kind]


PLAIN = WeightForm()


@dataclass(frozen=True)
class Weights:
    """What was asked for a model: the forms of its layers and of its head, and its dtype, "auto" where nobody says.

    `as_stored`, `head_as_stored`: nobody asked for a form, so that weights which are quantized already stay so.
    """

    layers: WeightForm = PLAIN
    head: WeightForm = PLAIN
    dtype: str = "auto"
    as_stored: bool = False
    head_as_stored: bool = False


PLAIN_WEIGHTS = Weights()


def read_weights(dtype: str = "auto", weights: str = "auto", head_weights: str = "auto") -> Weights:
    """The three options together; a head of "auto" is as the layers are. Raises ValueError where they contradict."""
    layers, named = read_weight_form(weights)
    head, head_named = (layers, None) if head_weights == "auto" else read_weight_form(head_weights, "head_weights")
    for option, value in (("weights", named), ("head_weights", head_named)):
        if value is None:
            continue
        if dtype not in ("auto", value):
            raise ValueError(
                f"{option} says {value} and dtype {dtype}: all that is not quantized has one dtype; give one of the two"
            )
        dtype = value
    return Weights(layers, head, dtype, weights == "auto", weights == head_weights == "auto")


def read_weight_form(name: str, option: str = "weights") -> tuple[WeightForm, str | None]:
    """The form that `name` asks for, and the dtype that it names (`bfloat16`), if it names one.

    Raises ValueError with what can be asked for.
    """
    kind, colon, group = name.strip().lower().partition(":")
    if kind in PLAIN_NAMES and not colon:
        return PLAIN, None
    if kind in DTYPES and not colon:
        return PLAIN, DTYPES[kind]
    if kind == "fp8" and not colon:
        return WeightForm("fp8"), None
    if kind not in GROUPS:
        known = "auto, plain, float32, bfloat16, float16, fp8, int8, int4, int4:32, int4:64, int4:128"
        raise ValueError(f"{option} {name!r:.40} is not a form of weights; use one of {known}")
    if not colon:
        return WeightForm(kind, GROUP[kind]), None  # type: ignore[arg-type]
    sizes = {str(size): size for size in GROUPS[kind] if size}
    if group not in sizes:
        raise ValueError(
            f"{option} {name!r:.40}: groups of {group!r:.20} values are not supported; use {kind}:"
            + f" or {kind}:".join(sizes)
        )
    return WeightForm(kind, sizes[group]), None  # type: ignore[arg-type]
