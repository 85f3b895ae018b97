"""What every op should give, in float64, written in numpy apart from `engine/ops`: the golden side of level 1.

Owns the definitions and how far rounding may carry a result from them: each comes with its `spread`, the sum of the
magnitudes that were added up to make an element, first-order error of its parts included. Knows no tolerance, no torch.

Shape suffixes as in `engine/ops/reference.py`. Sources: DeepSeek-V2 (arXiv 2405.04434) equations 9-19 for latent
attention, DeepSeek-V3 (arXiv 2412.19437) equations 12-16 for routing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinline.facts.models import Experts

Array = NDArray[Any]

ORDER_BITS = 5  # in float32, what the order of summation takes beyond the last rounding: a factor of 32


@dataclass(frozen=True)
class Golden:
    """One result. `spread`: see above; `terms`: the longest sum in it; `inner`: how often a provider may round to the
    op's dtype on the way there; `exact`: a move, right to the bit or wrong. `permitted`: what these roundings, made
    to nearest, come to where they matter more than the last one: for attention, whose scores are exponents."""

    value: Array
    spread: Array
    terms: int
    inner: float = 0.0
    exact: bool = False
    permitted: Array | None = None


def rounded(x: Array, bits: int) -> Array:
    """To the nearest number of `bits` significant bits, ties to even. Range is not looked at."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)


def sigmoid(x: Array) -> Array:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def embedding(ids_N: Array, table_VX: Array, *, bits: int) -> tuple[Golden, ...]:
    value = table_VX[ids_N]
    return (Golden(value, np.abs(value), 1, exact=True),)


def _norm(x_NX: Array, weight_X: Array, eps: float) -> Golden:
    value = x_NX / np.sqrt((x_NX * x_NX).mean(-1, keepdims=True) + eps) * weight_X
    return Golden(value, np.abs(value), x_NX.shape[-1], inner=1.0)


def rms_norm(x_NX: Array, weight_X: Array, eps: float, *, bits: int) -> tuple[Golden, ...]:
    return (_norm(x_NX, weight_X, eps),)


def add_rms_norm(x_NX: Array, residual_NX: Array, weight_X: Array, eps: float, *, bits: int) -> tuple[Golden, ...]:
    """The residual stream is kept in the op's dtype, and what is normed is what is kept."""
    total = residual_NX + x_NX
    return _norm(rounded(total, bits), weight_X, eps), Golden(total, np.abs(total), 1)


def linear(x: Array, weight: Array, bias: Array | None = None, *, bits: int) -> tuple[Golden, ...]:
    value, spread = x @ weight.T, np.abs(x) @ np.abs(weight).T
    if bias is not None:
        value, spread = value + bias, spread + np.abs(bias)
    return (Golden(value, spread, x.shape[-1]),)


def silu_mul(gate_up: Array, *, bits: int) -> tuple[Golden, ...]:
    gate, up = np.split(gate_up, 2, -1)
    value = silu(gate) * up
    return (Golden(value, np.abs(value), 4, inner=1.0),)


def rope(x_NHR: Array, cos_NR: Array, sin_NR: Array, interleaved: bool, *, bits: int) -> tuple[Golden, ...]:
    cos, sin = cos_NR[:, None], sin_NR[:, None]
    half = x_NHR.shape[-1] // 2
    a, b = (x_NHR[..., ::2], x_NHR[..., 1::2]) if interleaved else (x_NHR[..., :half], x_NHR[..., half:])
    to_a, to_b = a * cos - b * sin, b * cos + a * sin
    size_a, size_b = np.abs(a * cos) + np.abs(b * sin), np.abs(b * cos) + np.abs(a * sin)
    value, spread = np.empty_like(x_NHR), np.empty_like(x_NHR)
    first, second = (np.s_[..., ::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    value[first], value[second] = to_a, to_b
    spread[first], spread[second] = size_a, size_b
    return (Golden(value, spread, 2),)


def kv_write(cache: Array, slots_N: Array, *rows_NGd: Array, bits: int) -> tuple[Golden, ...]:
    value = cache.copy()
    flat = value.reshape(cache.shape[0], -1, cache.shape[-1])
    for slot, row in zip(slots_N, np.concatenate(rows_NGd, -1), strict=True):
        flat[:, slot] = row
    return (Golden(value, np.abs(value), 1, exact=True),)


@dataclass(frozen=True)
class _Seen:
    """Keys and values `[H, L, d]` and `[H, L, v]`, each with the magnitudes that made them."""

    k: Array
    v: Array
    size_k: Array
    size_v: Array


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def _attend(q_THd: Array, seen: _Seen, scale: float, bits: int) -> Golden:
    """Causal attention of the last T of L places. An error of a score moves its weight by as much, relatively, and
    all others by its share: the spread is sum w (1 + s + sum w s) |v|, with s the magnitude of a score. Permitted:
    scaled queries, keys, values, scores and weights rounded to the dtype."""
    q = q_THd.transpose(1, 0, 2)
    rows, length = q.shape[1], seen.k.shape[1]
    later = np.arange(length)[None] > np.arange(length - rows, length)[:, None]
    weights = _softmax(np.where(later, -np.inf, q @ seen.k.transpose(0, 2, 1) * scale))
    bits = bits if bits < 24 else bits - ORDER_BITS
    k, v = rounded(seen.k, bits), rounded(seen.v, bits)
    scores = rounded(rounded(q * scale, bits) @ k.transpose(0, 2, 1), bits)
    permitted = rounded(_softmax(np.where(later, -np.inf, scores)), bits) @ v
    size = np.abs(q) @ seen.size_k.transpose(0, 2, 1) * abs(scale)
    moved = weights * (1 + size + (weights * np.where(later, 0, size)).sum(-1, keepdims=True))
    value = (weights @ seen.v).transpose(1, 0, 2)
    spread = (moved @ seen.size_v).transpose(1, 0, 2)
    return Golden(value, spread, max(length, q.shape[-1]), inner=3.0,
                  permitted=rounded(permitted.transpose(1, 0, 2), bits))  # fmt: skip


def _gather(cache: Array, pages_P: Array, length: int) -> Array:
    return cache[:, pages_P].reshape(cache.shape[0], -1, cache.shape[-1])[:, :length]


def _grouped(q: Array, k_cache: Array, v_cache: Array, pages: Array, length: int, scale: float, bits: int
             ) -> Golden:  # fmt: skip
    times = q.shape[1] // k_cache.shape[0]
    k, v = (np.repeat(_gather(c, pages, length), times, 0) for c in (k_cache, v_cache))
    return _attend(q, _Seen(k, v, np.abs(k), np.abs(v)), scale, bits)


def attention_prefill(q: Array, k_cache: Array, v_cache: Array, plan: Any, scale: float, *, bits: int
                      ) -> tuple[Golden, ...]:  # fmt: skip
    return (_grouped(q, k_cache, v_cache, np.asarray(plan.pages_P), plan.total, scale, bits),)


def _joined(parts: list[Golden]) -> tuple[Golden, ...]:
    value, spread, permitted = (np.concatenate([getattr(p, name) for p in parts])
                                for name in ("value", "spread", "permitted"))  # fmt: skip
    return (Golden(value, spread, max(p.terms for p in parts), parts[0].inner, permitted=permitted),)


def attention_decode(q: Array, k_cache: Array, v_cache: Array, plan: Any, scale: float, *, bits: int
                     ) -> tuple[Golden, ...]:  # fmt: skip
    pages = np.asarray(plan.pages_DP)
    return _joined([_grouped(q[d : d + 1], k_cache, v_cache, pages[d], int(length), scale, bits)
                    for d, length in enumerate(plan.lengths_D)])  # fmt: skip


def mla_absorb(x_DHI: Array, weight_HIO: Array, *, bits: int) -> tuple[Golden, ...]:
    value = np.einsum("dhi,hio->dho", x_DHI, weight_HIO)
    return (Golden(value, np.einsum("dhi,hio->dho", np.abs(x_DHI), np.abs(weight_HIO)), x_DHI.shape[-1]),)


def mla_prefill(q_nope: Array, q_pe: Array, cache: Array, uk_HdC: Array, uv_HvC: Array, plan: Any, scale: float, *,
                bits: int) -> tuple[Golden, ...]:  # fmt: skip
    heads, _, rank = uk_HdC.shape
    held = _gather(cache, np.asarray(plan.pages_P), plan.total)[0]
    latent, turned = held[:, :rank], np.broadcast_to(held[:, rank:], (heads, len(held), held.shape[-1] - rank))
    seen = _Seen(
        np.concatenate((latent @ uk_HdC.transpose(0, 2, 1), turned), -1),
        latent @ uv_HvC.transpose(0, 2, 1),
        np.concatenate((np.abs(latent) @ np.abs(uk_HdC).transpose(0, 2, 1), np.abs(turned)), -1),
        np.abs(latent) @ np.abs(uv_HvC).transpose(0, 2, 1),
    )
    found = _attend(np.concatenate((q_nope, q_pe), -1), seen, scale, bits)
    return (replace(found, terms=max(found.terms, rank)),)


def mla_decode(q_latent: Array, q_pe: Array, cache: Array, plan: Any, scale: float, *, bits: int
               ) -> tuple[Golden, ...]:  # fmt: skip
    q, rank, pages = np.concatenate((q_latent, q_pe), -1), q_latent.shape[-1], np.asarray(plan.pages_DP)
    parts = []
    for d, length in enumerate(plan.lengths_D):
        k = np.broadcast_to(_gather(cache, pages[d], int(length)), (q.shape[1], int(length), cache.shape[-1]))
        v = k[..., :rank]
        parts.append(_attend(q[d : d + 1], _Seen(k, v, np.abs(k), np.abs(v)), scale, bits))
    return _joined(parts)


def experts(x_NX: Array, weights: tuple[Array, Array], chosen_NK: Array, weights_NK: Array,
            base_NX: Array | None = None, *, bits: int) -> tuple[Golden, ...]:  # fmt: skip
    gate_up, down = weights
    base = np.zeros_like(x_NX) if base_NX is None else base_NX
    value, spread = base.copy(), np.abs(base)
    inner = down.shape[-1]
    for expert in np.unique(chosen_NK):
        row, place = np.nonzero(chosen_NK == expert)
        x, share = x_NX[row], weights_NK[row, place, None]
        gate, up = np.split(x @ gate_up[expert].T, 2, -1)
        size_gate, size_up = np.split(np.abs(x) @ np.abs(gate_up[expert]).T, 2, -1)
        act = silu(gate) * up
        size = np.abs(act) + 1.1 * np.abs(up) * size_gate + np.abs(silu(gate)) * size_up  # |silu'| < 1.1
        np.add.at(value, row, act @ down[expert].T * share)
        np.add.at(spread, row, size @ np.abs(down[expert]).T * np.abs(share))
    return (Golden(value, spread, max(x_NX.shape[-1], inner), inner=3.0),)


@dataclass(frozen=True)
class Routing:
    """What a router should do: per row and expert the `score`, its uncertainty in units of float32's roundoff, and
    by what it is chosen; `choice` is -inf where the expert's group is out."""

    score_NE: Array
    size_NE: Array
    choice_NE: Array
    margin_N: Array
    experts: Experts

    def chosen(self) -> Array:
        return np.argsort(-self.choice_NE, -1, kind="stable")[:, : self.experts.per_token]

    def weights(self, chosen_NK: Array) -> Golden:
        """The weights of experts chosen by somebody else."""
        e = self.experts
        value = np.take_along_axis(self.score_NE, chosen_NK, -1)
        size = np.take_along_axis(self.size_NE, chosen_NK, -1).max(-1, keepdims=True)
        if e.normalise:
            value = value / (value.sum(-1, keepdims=True) + 1e-20)
        value = value * e.scale
        return Golden(value, np.abs(value) * (1 + 2 * size), max(e.count, 4))


def routing(x_NX: Array, gate_EX: Array, bias_E: Array | None, e: Experts) -> Routing:
    logits = x_NX @ gate_EX.T
    size = np.abs(x_NX) @ np.abs(gate_EX).T
    if e.score == "sigmoid":
        score = sigmoid(logits)
    else:
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        score = raised / raised.sum(-1, keepdims=True)
    choice = score if bias_E is None else score + bias_E
    margins = [np.full(len(x_NX), np.inf)]
    if e.limit != "none" and e.groups > 1:
        grouped = choice.reshape(len(choice), e.groups, -1)
        best = min(2, grouped.shape[-1]) if e.limit == "top2" else 1
        of_group = np.sort(grouped, -1)[..., -best:].sum(-1)
        ordered = -np.sort(-of_group, -1)
        if e.groups_kept < e.groups:
            margins.append(ordered[:, e.groups_kept - 1] - ordered[:, e.groups_kept])
        kept = np.argsort(-of_group, -1, kind="stable")[:, : e.groups_kept]
        mask = np.full(of_group.shape, -np.inf)
        np.put_along_axis(mask, kept, 0.0, -1)
        choice = (grouped + mask[..., None]).reshape(choice.shape)
    ordered = -np.sort(-choice, -1)
    if e.per_token < e.count:
        margins.append(ordered[:, e.per_token - 1] - ordered[:, e.per_token])
    return Routing(score, size, choice, np.min(margins, 0), e)


GOLDEN: dict[str, Callable[..., tuple[Golden, ...]]] = {
    f.__name__: f
    for f in (embedding, rms_norm, add_rms_norm, linear, silu_mul, rope, kv_write, attention_prefill, attention_decode,
              mla_absorb, mla_prefill, mla_decode, experts)
}  # fmt: skip
