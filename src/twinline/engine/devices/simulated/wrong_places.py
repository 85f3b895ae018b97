"""Faults of places: gathers, scatters, sorts, masks and strides that read or write the wrong one.

Owns these faults.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.engine.devices.simulated.families import ADD_ROWS, FILL_WHERE, MATRIX, RANDOM, ROWS, SORT, WRITE_ROWS
from twinline.engine.devices.simulated.fault import Fault, fault, rounded

ATTENDS = "mla_prefill mla_decode attention_prefill attention_decode"


def _moved(index: Tensor, extent: int) -> Tensor:
    index = index.clone()
    flat = index.view(-1)
    flat[-1] = flat[-1] + 1 if int(flat[-1]) + 1 < extent else flat[-1] - 1
    return index


@fault("gather-off-by-one", "of more than so many rows that are gathered the last is its neighbour",
       "embedding experts rope device.aten " + ATTENDS, number=4, counts="rows that are right")  # fmt: skip
def gather_off_by_one(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        if call.name == "index":
            found = [at for at, one in enumerate(call.args[1]) if one is not None]
            at = found[-1] if found else -1
            index = call.args[1][at] if found else None
            if index is not None and index.dtype == torch.int64 and index.numel() > number:
                moved = list(call.args[1])
                moved[at] = _moved(index, call.args[0].shape[at])
                call.args[1] = moved
            return
        at = 1 if call.name == "embedding" else 2
        dim = 0 if call.name == "embedding" else call.args[1]
        if call.args[at].numel() > number:
            call.args[at] = _moved(call.args[at], call.args[0].shape[dim])

    chip.plant(ROWS, before=before)


@fault("last-row-not-written", "of several rows that are written to places the last is lost", "kv_write device.aten")
def last_row_not_written(chip: Chip, number: float) -> None:
    def key(call: Call) -> Any:
        if call.name.startswith("index_copy"):
            _, dim, index = call.args[:3]
            return (*[slice(None)] * (dim % call.args[0].ndim), index[-1:]) if len(index) > 1 else None
        indices = call.args[1]
        given = [one for one in indices if one is not None]
        if not given or any(one.dtype == torch.bool or one.ndim != 1 or len(one) < 2 for one in given):
            return None
        return tuple(slice(None) if one is None else one[-1:] for one in indices)

    def before(call: Call) -> None:
        place = key(call)
        call.memo = None if place is None else (place, call.args[0][place].clone())

    def after(call: Call, out: Any) -> Any:
        if call.memo is not None:
            out[call.memo[0]] = call.memo[1]
        return out

    chip.plant(WRITE_ROWS, before=before, after=after)


@fault("adds-race", "of several rows that are added to one place only the last counts", "experts device.aten")
def adds_race(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        call.memo = call.args[0].clone()

    def after(call: Call, out: Any) -> Any:
        _, dim, index, source = call.args[:4]
        found = call.memo.clone()
        if call.name.startswith("index_add"):
            found.index_copy_(dim, index, found.index_select(dim, index) + source)
        else:
            found.scatter_(dim, index, found.gather(dim, index) + source)
        return out.copy_(found) if call.writes else found

    chip.plant(ADD_ROWS, before=before, after=after)


@fault("topk-takes-the-next", "the last of the k largest is the one after it", "route device.aten model.sampler")
def topk_takes_the_next(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        x, k, *rest = call.args
        dim = rest[0] if rest else -1
        if k < 2 or k >= x.shape[dim]:
            return out
        values, indices = x.topk(k + 1, dim)
        order = torch.tensor([*range(k - 1), k])
        return values.index_select(dim, order), indices.index_select(dim, order)

    chip.plant(("topk",), after=after)


@fault(
    "topk-in-16-bits",
    "the k largest are looked for among values rounded to bfloat16",
    "route device.aten model.sampler",
)
def topk_in_16_bits(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        x, *rest = call.args
        if x.dtype != torch.float32:
            return out
        _, indices = call.func(rounded(x), *rest, **call.kwargs)
        return x.gather(rest[1] if len(rest) > 1 else -1, indices), indices

    chip.plant(("topk",), after=after)


@fault("sort-unstable", "equal values come in the opposite order", "device.aten model.sampler determinism")
def sort_unstable(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        x, given = call.args[0], {a.name: v for a, v in zip(call.func._schema.arguments, call.args, strict=False)}
        given |= call.kwargs
        dim = given.get("dim", -1)
        values, indices = x.flip(dim).sort(dim=dim, descending=bool(given.get("descending", False)), stable=True)
        indices = x.shape[dim] - 1 - indices
        return indices if call.name == "argsort" else (values, indices)

    chip.plant(SORT - {"msort"}, after=after)


@fault("max-takes-the-last", "of equal maxima the last is named", "device.aten model.sampler")
def max_takes_the_last(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        if not isinstance(out, tuple):
            return out
        x, dim = call.args[0], call.args[1]
        keep = bool(call.args[2]) if len(call.args) > 2 else False
        values, indices = x.flip(dim).max(dim, keep)
        return values, x.shape[dim] - 1 - indices

    chip.plant(("max",), after=after)


@fault("scatter-loses-last", "a scatter leaves out the last place of each row", "route device.aten")
def scatter_loses_last(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        dim, index = call.args[1], call.args[2]
        if index.shape[dim] > 1:
            call.args[2] = index.narrow(dim, 0, index.shape[dim] - 1)

    chip.plant(("scatter_", "scatter"), before=before)


@fault(
    "gather-repeats", "gather gives the first value of a row in the last place too", "route device.aten model.sampler"
)
def gather_repeats(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        dim = call.args[1]
        if out.shape[dim] > 1:
            out.select(dim, -1).copy_(out.select(dim, 0))
        return out

    chip.plant(("gather",), after=after)


@fault(
    "counts-off",
    "the last kind that is counted, or listed as unique, is taken for the one before",
    "experts device.aten",
)
def counts_off(chip: Chip, number: float) -> None:
    def bins(call: Call, out: Any) -> Any:
        found = out.nonzero().flatten()
        if len(found) > 1:
            out[found[-2]] += out[found[-1]]
            out[found[-1]] = 0
        return out

    def kinds(call: Call, out: Any) -> Any:
        values = out[0] if isinstance(out, tuple) else out
        values = values[:-1].clone() if len(values) > 1 else values
        return (values, *out[1:]) if isinstance(out, tuple) else values

    chip.plant(("bincount",), after=bins)
    chip.plant(("_unique2", "unique", "_unique", "unique_dim"), after=kinds)


@fault("mask-misses-the-end", "what is masked leaves out the last column", ATTENDS + " device.aten model.sampler route")
def mask_misses_the_end(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        at = 0 if call.name == "where" else 1
        mask = call.args[at]
        if mask.ndim and mask.shape[-1] > 1:
            mask = mask.clone()
            mask[..., -1] = call.name == "where"
            call.args[at] = mask

    chip.plant(FILL_WHERE, before=before)


@fault("causal-off-by-one", "causal attention looks one place ahead", "mla_prefill attention_prefill device.aten model")
def causal_off_by_one(chip: Chip, number: float) -> None:
    def triangle(call: Call) -> None:
        call.args = [call.args[0], (call.args[1] if len(call.args) > 1 else 0) + 1]

    def fused(call: Call) -> None:
        mask = call.kwargs.get("attn_mask", call.args[3] if len(call.args) > 3 else None)
        causal = call.kwargs.get("is_causal", call.args[5] if len(call.args) > 5 else False)
        if causal:
            mask = torch.ones(call.args[0].shape[-2], call.args[1].shape[-2], dtype=torch.bool).tril(1)
        elif mask is not None and mask.dtype == torch.bool:
            mask = mask.clone()
            mask[..., 1:] |= mask[..., :-1].clone()
        call.args, call.kwargs["attn_mask"], call.kwargs["is_causal"] = call.args[:3], mask, False

    chip.plant(("tril", "triu", "tril_", "triu_"), before=triangle)
    chip.plant(("scaled_dot_product_attention",), before=fused)


@fault(
    "strides-ignored",
    "a multiplication reads a strided tensor as if it were contiguous",
    "rope device.aten device.strides",
)
def strides_ignored(chip: Chip, number: float) -> None:
    def misread(one: Any) -> Any:
        if not isinstance(one, Tensor) or one.is_contiguous() or not one.is_floating_point() or 0 in one.stride():
            return one
        return one.as_strided(one.shape, torch.empty(one.shape, device="meta").stride(), one.storage_offset())

    def before(call: Call) -> None:
        call.args = [misread(one) for one in call.args]

    chip.plant(("mul",), before=before)


@fault("strided-store", "a copy into a strided tensor puts the first value of a row in its last place too",
       "rope device.aten device.copies device.strides")  # fmt: skip
def strided_store(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        if not call.direction and not out.is_contiguous() and out.ndim and out.shape[-1] > 1:
            out[..., -1] = out[..., 0]
        return out

    chip.plant(("copy_",), after=after)


@fault("cat-repeats", "tensors put side by side have the last column twice", "mla_prefill mla_decode rope device.aten")
def cat_repeats(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        dim = call.args[1] if len(call.args) > 1 else 0
        if dim % out.ndim == out.ndim - 1 and out.shape[-1] > 1:
            out[..., -2] = out[..., -1]
        return out

    chip.plant(("cat",), after=after)


@fault("empty-refused", "an op on an empty tensor raises an error", "device.empty device.aten ops")
def empty_refused(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        if any(isinstance(one, Tensor) and not one.numel() for one in call.args):
            raise RuntimeError(f"simchip:{call.chip.index} (simulated): invalid configuration argument in {call.name}")

    chip.plant(MATRIX | ROWS | {"add", "mul", "silu", "sum", "clone", "sort", "argsort", "topk"}, before=before)


@fault("random-repeats", "random numbers are the same at every call", "device.rng device.random")
def random_repeats(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        if "generator" in call.kwargs:
            call.kwargs["generator"] = torch.Generator().manual_seed(7)

    chip.plant(RANDOM, before=before)


ALL: tuple[Fault, ...] = (
    gather_off_by_one, last_row_not_written, adds_race, topk_takes_the_next, topk_in_16_bits, sort_unstable,
    max_takes_the_last, scatter_loses_last, gather_repeats, counts_off, mask_misses_the_end, causal_off_by_one,
    strides_ignored, strided_store, cat_repeats, empty_refused, random_repeats,
)  # fmt: skip
