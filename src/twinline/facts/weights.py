"""What weights weigh: all of a checkpoint, and what one device holds of it under a layout.

Owns the cutting of tensors and the sums over them. Must not know chips, caches or engines.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from twinline.facts.forms import TYPE_BITS, Form
from twinline.facts.layouts import Layout, stages
from twinline.facts.tensors import Anatomy, Tensor

VOCABULARY_STEP = 64  # engines fill the vocabulary up to a multiple of this before they cut it (vLLM, SGLang)
ABSORBED_BYTES = 2


class Entry(msgspec.Struct, frozen=True):
    """One tensor as an index of safetensors would list it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def index(anatomy: Anatomy, form: Form) -> Iterator[Entry]:
    """Every tensor of the checkpoint in this form, scales as entries of their own.

    Names and shapes are those of published checkpoints for plain types and for FP8; for other forms the values and
    scales are right in bytes, not in names.
    """
    for tensor in anatomy.tensors:
        values, whole = form.values(tensor), form.bytes(tensor, tensor.shape)
        for name in tensor.names():
            if values is None:
                yield Entry(name, tensor.dtype or form.plain, tensor.shape, whole)
                continue
            high, wide = values.scales(tensor.shape)
            own = math.ceil(math.prod(tensor.shape) * TYPE_BITS[values.type] / 8)
            yield Entry(name, values.type, tensor.shape, own)
            suffix = "_scale_inv" if values.type == "F8_E4M3" else "_scale"
            yield Entry(name + suffix, values.scale, (high, wide), whole - own)


def checkpoint_bytes(anatomy: Anatomy, form: Form) -> int:
    """Bytes of all tensors and scales: the `total_size` of an index."""
    return sum(form.bytes(t, t.shape) * t.copies for t in anatomy.tensors)


def cut(tensor: Tensor, anatomy: Anatomy, layout: Layout) -> tuple[int, ...]:
    """The shape that one device holds of one copy. Experts that are spread whole are not cut."""
    if tensor.part == "predictor" or (tensor.experts and layout.expert_parallel):
        return tensor.shape
    first, *rest = tensor.shape
    ranks = layout.tensor
    match tensor.split:
        case "rows":
            return (math.ceil(first / ranks), *rest)
        case "columns":
            return (first, math.ceil(rest[0] / ranks))
        case "heads":
            return (first // anatomy.heads * math.ceil(anatomy.heads / ranks), *rest)
        case "kv-heads":
            return (first // anatomy.kv_heads * math.ceil(anatomy.kv_heads / ranks), *rest)
        case "fused-heads":
            queries, keys = math.ceil(anatomy.heads / ranks), math.ceil(anatomy.kv_heads / ranks)
            return ((queries + 2 * keys) * anatomy.head_size, *rest)
        case "vocabulary":
            filled = math.ceil(first / VOCABULARY_STEP) * VOCABULARY_STEP if ranks > 1 else first
            return (math.ceil(filled / ranks), *rest)
        case _:
            return tensor.shape


class Held(msgspec.Struct, frozen=True):
    """What a device of one pipeline stage holds: bytes by part, the second copies of absorbed matrices apart, and how
    many of the model's layers it has."""

    parts: dict[str, int]
    absorbed: int
    layers: int

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@lru_cache(maxsize=4096)
def held(anatomy: Anatomy, form: Form, layout: Layout) -> tuple[Held, ...]:
    """What the fullest device of each stage holds for serving, without the predictor. A tied head past the first
    stage is a copy of the embedding."""
    layered: list[tuple[Tensor, int, int]] = []  # bytes in one layer, and of the second copy there
    first: Counter[str] = Counter()
    last: Counter[str] = Counter()
    for tensor in anatomy.tensors:
        if tensor.part == "predictor":
            continue
        shape = cut(tensor, anatomy, layout)
        copies = math.ceil(tensor.experts / layout.experts) if tensor.experts else 1
        size = form.bytes(tensor, shape) * copies
        if tensor.layers:
            layered.append((tensor, size, math.prod(shape) * ABSORBED_BYTES if tensor.absorbed else 0))
            continue
        (first if tensor.part == "embedding" else last)[tensor.part] += size
        if tensor.part == "embedding" and anatomy.tied and layout.pipeline > 1:
            last["head"] += size
    result, start = [], 0
    for at, number in enumerate(stages(anatomy.layers, layout.pipeline)):
        parts = (first if at == 0 else Counter()) + (last if at == layout.pipeline - 1 else Counter())
        absorbed = 0
        for tensor, size, second in layered:
            # Of its layers, which are in ascending order, those that the stage has.
            here = bisect_left(tensor.layers, start + number) - bisect_left(tensor.layers, start)
            if here:
                parts[tensor.part] += size * here
                absorbed += second * here
        result.append(Held(dict(parts), absorbed, number))
        start += number
    return tuple(result)
