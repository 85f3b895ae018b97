"""What a device needs beside weights: the KV cache per token, activations, workspace, communication, the runtime.

Owns these estimates, each with how it is known and its source. The cache is exact; the rest is estimated, from the
memory models of public planners. Must not know what fits (`fit.py`).
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from twinline.facts.chips import Chip
from twinline.facts.evidence import Figure
from twinline.facts.layouts import Layout
from twinline.facts.tensors import Anatomy

PAGE = 64  # tokens; engines' pages hold 16 to 128
ACTIVATION_BYTES = 2
CONFIGURATOR = "ai-dynamo/aiconfigurator, its memory model"

CacheType = Literal["bf16", "fp8", "int8"]


class CacheForm(msgspec.Struct, frozen=True, kw_only=True):
    """How the cache is stored: bytes per value, and for latent attention how many of latent, rotated key, indexer."""

    name: CacheType
    value_bytes: int


CACHE_FORMS: dict[str, CacheForm] = {
    "bf16": CacheForm(name="bf16", value_bytes=2),
    "fp8": CacheForm(name="fp8", value_bytes=1),
    "int8": CacheForm(name="int8", value_bytes=1),
}


def cache_bytes(anatomy: Anatomy, cache: CacheForm, layout: Layout, layers: int) -> int:
    """Bytes of one token in `layers` layers on one device.

    Grouped-query attention: keys and values of the KV heads that the device has; past as many ranks as KV heads they
    are copied. Latent attention: every rank of tensor parallelism holds all of it. An indexer (V3.2) adds a key of its
    own; with an 8-bit cache the layout is the published sparse one: 1 byte for each value of the latent, 4 bytes of
    scale for 128 of them, 2 bytes for each rotated value; the indexer's key has 8 bits and one scale always.
    """
    if anatomy.latent is None:
        heads = math.ceil(anatomy.kv_heads / layout.tensor)
        return layers * 2 * heads * anatomy.head_size * cache.value_bytes
    rank, rope, indexer = anatomy.latent.rank, anatomy.latent.rope, anatomy.latent.indexer
    row = (rank + rope) * cache.value_bytes
    if indexer:
        row = rank + rank // 128 * 4 + rope * 2 if cache.value_bytes == 1 else row
        row += indexer + math.ceil(indexer / 128) * 4
    return layers * row


# Peak of activations in units of 2 bytes x tokens x hidden size, by ranks of tensor parallelism (aiconfigurator).
FACTORS_EXPERTS = {1: 28, 2: 17, 4: 13, 8: 8}  # DeepSeek on SGLang
FACTORS_DENSE = {1: 11.0, 2: 6.5, 4: 5.0, 8: 5.0}  # Llama
MARGIN_EXPERTS = 1.15
LEAST_ACTIVATIONS = 90 * 2**20


def activation_factor(anatomy: Anatomy, ranks: int) -> float:
    known = FACTORS_EXPERTS if anatomy.mixture else FACTORS_DENSE
    near = max(n for n in known if n <= ranks)
    return known[near] * (MARGIN_EXPERTS if anatomy.mixture else 1.0)


def activations(anatomy: Anatomy, layout: Layout, chunk: int) -> Figure:
    """Peak bytes while a chunk of `chunk` tokens is prefilled: 2 x tokens x hidden x factor, at least 90 MiB."""
    factor = activation_factor(anatomy, layout.tensor)
    value = max(ACTIVATION_BYTES * chunk * anatomy.hidden * factor, LEAST_ACTIVATIONS)
    family = "DeepSeek on SGLang, + 15%" if anatomy.mixture else "Llama"
    return Figure(value, "estimate", CONFIGURATOR, f"2 x {chunk} x {anatomy.hidden} x {factor:.3g} ({family})")


def logits(anatomy: Anatomy, layout: Layout, rows: int) -> Figure:
    """Bytes of 32-bit logits of `rows` sequences, cut by the vocabulary."""
    value = rows * math.ceil(anatomy.vocab / layout.tensor) * 4
    return Figure(value, "estimate", "shapes", f"{rows} rows x {anatomy.vocab} x 4 bytes / {layout.tensor}")


def expert_workspace(anatomy: Anatomy, layout: Layout, chunk: int) -> Figure | None:
    """Bytes of the rows that experts receive and give back: rows x hidden x 2 bytes, twice.

    Without expert parallelism a device computes all rows of its group (tokens x experts per token); with it the rows
    of all groups are spread evenly over all devices of a stage.
    """
    mixture = anatomy.mixture
    if mixture is None:
        return None
    rows = chunk * mixture.per_token * layout.data / (layout.experts if layout.expert_parallel else 1)
    value = math.ceil(rows) * anatomy.hidden * ACTIVATION_BYTES * 2
    note = f"{math.ceil(rows)} rows x {anatomy.hidden} x 2 bytes, in and out"
    return Figure(value, "estimate", f"shapes, as {CONFIGURATOR}", note)


NCCL_BYTES = 392e6
HCCL_BUFFER = 200 * 2**20
GRAPH_BYTES = 1e9
CONTEXT_BYTES = 0.5e9
ASCEND_IDLE = 3.3e9


def communication(vendor: str, layout: Layout) -> Figure | None:
    """Bytes of collective buffers; None for one device."""
    if layout.devices == 1:
        return None
    groups = 1 + (layout.pipeline > 1 or layout.expert_parallel)
    if vendor == "huawei":
        note = f"200 MB to send and to receive, {groups} group{'s' * (groups > 1)}"
        return Figure(2 * HCCL_BUFFER * groups, "vendor", "Ascend/pytorch: HCCL_BUFFSIZE is 200 MB by default", note)
    if vendor == "nvidia":
        return Figure(NCCL_BYTES, "measured", f"{CONFIGURATOR}: NCCL", "342 to 392 MB in its system files")
    note = "not found for this vendor: NCCL's 392 MB taken"
    return Figure(NCCL_BYTES, "estimate", f"{CONFIGURATOR}: NCCL", note)


def runtime(chip: Chip) -> Figure:
    """Bytes that driver and libraries hold on each device before a model is there."""
    if chip.vendor == "huawei" and "910b" in chip.id:
        return Figure(ASCEND_IDLE, "measured", "vllm-project/vllm-ascend", "an idle 910B holds about 3.3 GB")
    if chip.vendor == "cpu":
        return Figure(CONTEXT_BYTES, "estimate", "our experience of Python processes with PyTorch", "libraries")
    note = "context and libraries" if chip.vendor == "nvidia" else "not found for this vendor: 0.5 GB taken"
    return Figure(CONTEXT_BYTES, "estimate", "what an idle PyTorch process holds", note)


def graphs(chip: Chip) -> Figure | None:
    """Bytes of captured graphs."""
    if chip.vendor == "cpu":
        return None
    return Figure(GRAPH_BYTES, "estimate", "start messages of engines: 0.5 to 2 GB", "captured decode graphs")
