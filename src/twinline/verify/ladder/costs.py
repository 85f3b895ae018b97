"""What an op must at least move and compute: bytes and floating-point operations of one call.

Owns the sums, from the shapes of the call and the model's spec. A product of [m, k] and [k, n] counts 2mkn; weights are
read once; of a cache, the places in use. Sources: DeepSeek-V2 (arXiv 2405.04434) for latent attention in both forms.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.facts.models import GroupedQuery, Latent, ModelSpec
from twinline.verify.ladder.calls import tensors


def cost(op: str, args: tuple[Any, ...], out: Any, spec: ModelSpec) -> tuple[int, int]:
    """(bytes, flops) of one call."""
    moved = sum(_bytes(t) for t in tensors(out))
    x: Tensor = args[0]
    size = x.element_size()
    if op == "embedding":
        return 2 * moved + _bytes(x), 0
    if op == "linear":
        rows, width, made = x.numel() // x.shape[-1], x.shape[-1], out.shape[-1]
        return moved + _bytes(x) + made * width * size, 2 * rows * width * made
    if op == "kv_write":
        return 2 * sum(map(_bytes, args[2:])) + _bytes(args[1]), 0
    if op == "mla_absorb":
        return moved + _bytes(x) + _bytes(args[1]), 2 * x.shape[0] * args[1].numel()
    if op == "route":
        rows = x.shape[0]
        return moved + _bytes(x) + _bytes(args[1]), 2 * rows * args[1].numel()
    if op == "experts":
        base = sum(_bytes(t) for t in tensors(args[4:]))
        return _experts(x, args[2], spec, moved + base)
    if op in ("mla_prefill", "mla_decode"):
        return _latent(op, args, spec, moved)
    if op in ("attention_prefill", "attention_decode"):
        return _grouped(op, args, spec, moved)
    inputs = sum(_bytes(t) for a in args for t in tensors(a))
    elements = sum(t.numel() for t in tensors(out))
    return moved + inputs, 4 * elements


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _experts(x: Tensor, chosen_NK: Tensor, spec: ModelSpec, moved: int) -> tuple[int, int]:
    assert spec.experts is not None
    matrices = 3 * spec.experts.inner * x.shape[1]
    used = len(set(chosen_NK.flatten().tolist()))
    return moved + _bytes(x) + used * matrices * x.element_size(), 2 * chosen_NK.numel() * matrices


def _places(plan: PrefillPlan | DecodePlan) -> tuple[int, int]:
    """Places of the past that are read, and pairs of query and place."""
    if isinstance(plan, PrefillPlan):
        rows = plan.end - plan.start
        return plan.total, rows * plan.past + rows * (rows + 1) // 2
    places = int(plan.lengths_D.sum().item())
    return places, places


def _latent(op: str, args: tuple[Any, ...], spec: ModelSpec, moved: int) -> tuple[int, int]:
    a = spec.attention
    assert isinstance(a, Latent)
    plan = next(one for one in args if isinstance(one, PrefillPlan | DecodePlan))
    places, pairs = _places(plan)
    row, size = a.kv_rank + a.rope, args[0].element_size()
    read = moved + _bytes(args[0]) + _bytes(args[1]) + places * row * size
    if op == "mla_decode":
        return read, 2 * pairs * a.heads * (row + a.kv_rank)
    expand = 2 * places * a.kv_rank * a.heads * (a.nope + a.value)
    weights = a.heads * (a.nope + a.value) * a.kv_rank * size
    return read + weights, expand + 2 * pairs * a.heads * (a.nope + a.rope + a.value)


def _grouped(op: str, args: tuple[Any, ...], spec: ModelSpec, moved: int) -> tuple[int, int]:
    a = spec.attention
    assert isinstance(a, GroupedQuery)
    plan = next(one for one in args if isinstance(one, PrefillPlan | DecodePlan))
    places, pairs = _places(plan)
    read = moved + _bytes(args[0]) + 2 * places * a.kv_heads * a.head_size * args[0].element_size()
    return read, 4 * pairs * a.heads * a.head_size
