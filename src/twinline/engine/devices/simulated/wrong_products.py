"""Faults of matrix products: what a badly written kernel of a linear layer or of attention does.

Owns these faults. Sizes that they speak of are those of the product's own dimensions: K is the one that is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.engine.devices.simulated.families import ATTENTION, MATRIX, NORM
from twinline.engine.devices.simulated.fault import Fault, fault, flip, kept, numbers, rounded, truncated

PRODUCTS = "linear mla_absorb mla_prefill mla_decode attention_prefill attention_decode route experts device.aten"
_TILE = 16


def _left(call: Call) -> Tensor:
    """The operand whose last dimension is summed over."""
    if call.name == "einsum":
        return call.args[1][0]
    return call.args[1 if call.name in ("addmm", "baddbmm", "addmv") else 0]


def _with_left(call: Call, left: Tensor) -> list[Any]:
    if call.name == "einsum":
        return [call.args[0], [left, *call.args[1][1:]]]
    at = 1 if call.name in ("addmm", "baddbmm", "addmv") else 0
    return [*call.args[:at], left, *call.args[at + 1 :]]


def _right_at(call: Call) -> int:
    return 2 if call.name in ("addmm", "baddbmm") else 1


def _unrounded(chip: Chip, names: Iterable[str], change: Callable[[Tensor, torch.dtype | None], Tensor]) -> None:
    """Plants a change of results before they are rounded to 16 bits: `change` gets float32 and the dtype to come, None
    where the result stays as it is; what it gives is rounded to nearest."""

    def before(call: Call) -> None:
        given = call.args[1][0] if call.name == "einsum" else call.args[0]
        call.memo = given.dtype if given.dtype in (torch.bfloat16, torch.float16) else None
        if call.memo is not None:
            call.args = [_float(one) for one in call.args]
            call.kwargs = {key: _float(one) for key, one in call.kwargs.items()}

    def after(call: Call, out: Any) -> Any:
        out = kept(call, out, lambda x: change(x, call.memo))
        if call.memo is None:
            return out
        return tuple(one.to(call.memo) for one in out) if isinstance(out, tuple) else out.to(call.memo)

    chip.plant(names, before=before, after=after)


@fault("scaled-products", "every product comes out larger by the factor 1 + 2**-9", PRODUCTS)
def scaled_products(chip: Chip, number: float) -> None:
    _unrounded(chip, MATRIX, lambda x, dtype: x * (1 + 2**-9))


@fault("last-tile-dropped", "the last 16 of K are not added, where K is large enough", PRODUCTS,
       number=64, counts="the least K")  # fmt: skip
def last_tile_dropped(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        left = _left(call)
        if left.shape[-1] >= number:
            left = left.clone()
            left[..., -_TILE:] = 0
            call.args = _with_left(call, left)

    chip.plant(MATRIX, before=before)


@fault("bad-row", "one row of a product in so many is larger by a sixteenth", PRODUCTS + " long model",
       number=1000, counts="rows from one bad one to the next")  # fmt: skip
def bad_row(chip: Chip, number: float) -> None:
    rows = 0

    def spoil(x: Tensor) -> Tensor:
        nonlocal rows
        first, rows = rows, rows + x.numel() // x.shape[-1]
        bad = [n - first for n in range(-(-first // int(number)) * int(number), rows, int(number)) if n]
        if bad:
            x = x.clone()
            x.view(-1, x.shape[-1])[bad] *= 1 + 2**-4
        return x.contiguous() if not x.is_contiguous() else x

    numbers(chip, MATRIX - {"mv", "addmv", "dot"}, lambda x: spoil(x.contiguous()))


@fault("bits-flip", "a product in so many has one bit of its result flipped", PRODUCTS + " long model determinism",
       number=100, counts="products from one bad one to the next")  # fmt: skip
def bits_flip(chip: Chip, number: float) -> None:
    products = count(1)

    def after(call: Call, out: Any) -> Any:
        if next(products) % int(number) == 0:
            flip(out)
        return out

    chip.plant(MATRIX, after=after)


@fault("accumulates-in-16-bits", "sums of products are kept in bfloat16 from tile to tile", PRODUCTS)
def accumulates_in_16_bits(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        left = _left(call)
        if left.shape[-1] < 2 * _TILE or (call.name == "linear" and len(call.args) > 2 and call.args[2] is not None):
            return kept(call, out, rounded)
        total = torch.zeros_like(out)
        for at in range(0, left.shape[-1], _TILE):
            part = torch.zeros_like(left)
            part[..., at : at + _TILE] = left[..., at : at + _TILE]
            total = rounded(total + call.func(*_with_left(call, part), **call.kwargs))
        return total

    chip.plant(MATRIX - {"addmm", "baddbmm", "addmv", "dot"}, after=after)


@fault("stores-truncated", "16-bit results of products and norms are truncated, not rounded",
       PRODUCTS + " rms_norm add_rms_norm device.dtypes")  # fmt: skip
def stores_truncated(chip: Chip, number: float) -> None:
    _unrounded(chip, MATRIX | NORM, lambda x, dtype: x if dtype is None else truncated(x, dtype))


def _float(one: Any) -> Any:
    if isinstance(one, Tensor) and one.is_floating_point():
        return one.float()
    return [_float(each) for each in one] if isinstance(one, list | tuple) and any(
        isinstance(each, Tensor) for each in one) else one  # fmt: skip


@fault("last-batch-repeated", "in a product of many matrices the last takes the right side of the one before it",
       "mla_absorb mla_prefill mla_decode attention_decode attention_prefill device.aten")  # fmt: skip
def last_batch_repeated(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        at = _right_at(call)
        right = call.args[1][1] if call.name == "einsum" else call.args[at]
        if right.ndim < 3 or right.shape[0] < 2:
            return
        right = right.clone()
        right[-1] = right[-2]
        if call.name == "einsum":
            call.args[1] = [call.args[1][0], right]
        else:
            call.args[at] = right

    chip.plant(MATRIX & {"bmm", "baddbmm", "matmul", "einsum"}, before=before)


@fault("drifts", "products grow step by step once the chip has run for a while, up to a 64th",
       "long model tasks determinism " + PRODUCTS, number=60000, counts="ops before it begins")  # fmt: skip
def drifts(chip: Chip, number: float) -> None:
    def grow(x: Tensor, dtype: torch.dtype | None) -> Tensor:
        return x if chip.ops < number else x * (1 + 2**-6 * min(1.0, (chip.ops - number) / 20000))

    _unrounded(chip, MATRIX, grow)


@fault("sums-in-any-order", "the last bits of a product differ from run to run", "determinism device.determinism")
def sums_in_any_order(chip: Chip, number: float) -> None:
    numbered = count()

    def jitter(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(next(numbered))
        step = torch.randint(-1, 2, x.shape, generator=generator) * torch.finfo(x.dtype).eps
        return x * (1 + step)

    numbers(chip, MATRIX | ATTENTION, jitter)


@fault("wrong-by-batch", "a product of more than 8 rows swaps the first two of each 8", PRODUCTS + " model")
def wrong_by_batch(chip: Chip, number: float) -> None:
    def swap(x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[-2] <= 8:
            return x
        order = torch.arange(x.shape[-2])
        order[0:2] = torch.tensor([1, 0])
        return x.index_select(-2, order)

    numbers(chip, MATRIX, swap)


@fault("wrong-at-a-size", "a product of exactly so many rows swaps the first two", PRODUCTS,
       number=64, counts="rows")  # fmt: skip
def wrong_at_a_size(chip: Chip, number: float) -> None:
    def swap(x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[-2] != int(number):
            return x
        return torch.cat((x[..., 1:2, :], x[..., :1, :], x[..., 2:, :]), -2)

    numbers(chip, MATRIX, swap)


@fault(
    "first-call-wrong",
    "the first call of each kind of product and norm that gives more than four numbers gives zeros",
    PRODUCTS + " rms_norm device",
)
def first_call_wrong(chip: Chip, number: float) -> None:
    seen: set[str] = set()

    def after(call: Call, out: Any) -> Any:
        if call.name in seen or not isinstance(out, Tensor) or out.numel() <= 4:
            return out
        seen.add(call.name)
        return kept(call, out, torch.zeros_like)

    chip.plant(MATRIX | NORM | ATTENTION, after=after)


def attention(call: Call, weigh: Callable[[Tensor], Tensor]) -> Any:
    """Attention again, with `weigh` from scores to weights; arguments as of `scaled_dot_product_attention`."""
    q, k, v, mask, _, causal = [*call.args, None, None, None][:6] if len(call.args) < 6 else call.args[:6]
    mask, causal = call.kwargs.get("attn_mask", mask), call.kwargs.get("is_causal", causal)
    scale = call.kwargs.get("scale")
    if q.shape[-3] != k.shape[-3]:
        k, v = (one.repeat_interleave(q.shape[-3] // one.shape[-3], -3) for one in (k, v))
    scores = (q.float() @ k.float().transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (weigh(scores) @ v.float()).to(q.dtype)


ALL: tuple[Fault, ...] = (
    scaled_products, last_tile_dropped, bad_row, bits_flip, accumulates_in_16_bits, stores_truncated,
    last_batch_repeated, drifts, sums_in_any_order, wrong_by_batch, wrong_at_a_size,
    first_call_wrong,
)  # fmt: skip
