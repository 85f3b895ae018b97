"""The PyTorch ops that the engine's ops and sampler are made of, each tried on the device beside the CPU.

Owns the list: what is called with what, who needs it, and what to do where it is missing. A test holds the list against
what the model and the sampler really call. The device's result is compared with float64 and with the CPU's in the same
dtype: it may err four times as much, or by some roundings; integers, comparisons and moves to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.verify.ladder.attempt import LACKING, Where, attempt, first_line
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Figure, Finding

ROUNDINGS = 16.0  # of the dtype, in units of the element or of the typical size where terms cancel
RULE = "as the CPU: to the bit for integers and moves, else within 4x its error from float64"


@dataclass(frozen=True)
class Aten:
    """`calls` are the PyTorch ops that it reaches; `needs` are engine ops that use it, or `sampler`, `batch`. `plan`:
    what to do where it is missing. `exact`: to the bit, also for floating point. `alone`: an element comes of one
    element, so that none is small because others cancelled."""

    name: str
    calls: str
    needs: str
    run: Callable[[Any], Any]
    plan: str
    exact: bool = False
    alone: bool = False


class Inputs:
    """Tensors on one device, from the bench's generator: the same numbers on every device."""

    def __init__(self, bench: Bench, name: str, device: torch.device, wide: bool):
        self.draw, self.device, self.wide = bench.generator("aten", name), device, wide

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.of(torch.from_numpy(self.draw.standard_normal(shape) * scale).float())

    def of(self, x: Tensor) -> Tensor:
        return x.to(self.device, torch.float64 if self.wide and x.is_floating_point() else x.dtype)

    def whole(self, below: int, *shape: int) -> Tensor:
        return self.of(torch.from_numpy(self.draw.integers(0, below, shape)))

    def order(self, count: int) -> Tensor:
        return self.of(torch.from_numpy(self.draw.permutation(count)))

    def mask(self, *shape: int) -> Tensor:
        return self.of(torch.from_numpy(self.draw.random(shape) < 0.3))

    def ties(self, *shape: int) -> Tensor:
        """Numbers of which many are equal, the largest among them."""
        return self.of(torch.from_numpy(self.draw.integers(-4, 5, shape)).float())

    def apart(self, *shape: int) -> Tensor:
        """Numbers of which no two are equal, some very near."""
        steps = self.draw.permutation(int(np.prod(shape))).reshape(shape) * 2.0**-12
        return self.of(torch.from_numpy(steps).float())


COMPOSE = "compose it in a provider of your own, or implement it in the plugin"
SAMPLES = "the sampler needs it: implement it in the plugin; no provider can stand in"
REFERENCE = "the reference provider does without"


def _written(x: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    made = x.clone()
    write(made)
    return made


def _strided(i: Inputs) -> Tensor:
    a, b = i.normal(5, 4, 16)[..., ::2], i.normal(5, 4, 16)[..., 1::2]
    return a * b - b * i.normal(5, 1, 8)


def _attention(i: Inputs, **how: Any) -> Tensor:
    q, k, v = i.normal(1, 2, 33, 24), i.normal(1, 2, 33, 24), i.normal(1, 2, 33, 24)
    return F.scaled_dot_product_attention(q, k, v, scale=0.3, **how)


def _far(i: Inputs) -> Tensor:
    """Scores of softmax: far beyond what an exponential holds, and masked places."""
    x = i.normal(9, 700, scale=30.0)
    x[:, ::7] = -torch.inf
    return x


TABLE: tuple[Aten, ...] = (
    Aten("linear", "linear", "linear experts route", lambda i: F.linear(i.normal(9, 192), i.normal(65, 192)), COMPOSE),
    Aten("matmul", "matmul mm", "mla_decode mla_prefill", lambda i: i.normal(3, 33, 80) @ i.normal(3, 80, 17), COMPOSE),
    Aten("bmm", "bmm", "mla_absorb", lambda i: torch.bmm(i.normal(4, 33, 32), i.normal(4, 32, 64)),
         "use the reference provider (einsum)"),
    Aten("einsum", "einsum", "mla_absorb mla_prefill mla_decode", lambda i: torch.einsum(
        "dhi,hio->dho", i.normal(9, 4, 32), i.normal(4, 32, 64)), "use the batched provider (bmm)"),
    Aten("attention", "scaled_dot_product_attention", "mla_prefill attention_prefill",
         lambda i: _attention(i, is_causal=True), REFERENCE),
    Aten("attention_masked", "scaled_dot_product_attention", "mla_prefill attention_prefill", lambda i: _attention(
        i, attn_mask=i.of(torch.ones(33, 33, dtype=torch.bool)).tril()), REFERENCE),
    Aten("rms_norm", "rms_norm", "rms_norm add_rms_norm",
         lambda i: F.rms_norm(i.normal(9, 192), (192,), i.normal(192), 1e-6), REFERENCE),
    Aten("softmax", "softmax", "mla_decode attention_decode route", lambda i: _far(i).softmax(-1), COMPOSE, alone=True),
    Aten("log_softmax", "_log_softmax", "sampler", lambda i: i.normal(9, 700, scale=30.0).log_softmax(-1), SAMPLES),
    Aten("logsumexp", "logsumexp", "sampler", lambda i: i.normal(9, 700, scale=30.0).logsumexp(-1), SAMPLES),
    Aten("exp", "exp", "sampler", lambda i: i.normal(9, 700, scale=20.0).exp(), SAMPLES, alone=True),
    Aten("log", "log_ neg_", "sampler", lambda i: i.normal(9, 700).abs_().log_().neg_(), SAMPLES),
    Aten("log1p", "log1p_", "sampler", lambda i: i.normal(9, 700).abs_().log1p_(), SAMPLES, alone=True),
    Aten("sigmoid", "sigmoid", "route", lambda i: i.normal(9, 700, scale=8.0).sigmoid(), COMPOSE, alone=True),
    Aten("silu", "silu", "silu_mul experts", lambda i: F.silu(i.normal(9, 700, scale=8.0)), COMPOSE, alone=True),
    Aten("rsqrt", "rsqrt", "rms_norm add_rms_norm",
         lambda i: i.normal(9, 700).abs_().add_(1e-6).rsqrt(), COMPOSE, alone=True),
    Aten("pow", "pow mean", "rms_norm add_rms_norm", lambda i: i.normal(9, 700).pow(2).mean(-1, keepdim=True), COMPOSE),
    Aten("add", "add add_", "add_rms_norm rope", lambda i: (i.normal(9, 700) + i.normal(9, 700)).add_(1.5), COMPOSE),
    Aten("sub", "sub sub_", "rope sampler", lambda i: (i.normal(9, 700) - i.normal(9, 1)).sub_(1.5), COMPOSE),
    Aten("mul", "mul mul_", "every op", lambda i: (i.normal(9, 700) * i.normal(700)).mul_(0.3), COMPOSE),
    Aten("mul_strided", "mul", "rope", _strided, "make the operands contiguous in a provider of your own"),
    Aten("div", "div div_", "route sampler", lambda i: (i.normal(9, 700) / i.normal(9, 1)).div_(0.7), COMPOSE),
    Aten("sum", "sum", "route sampler", lambda i: i.normal(9, 700).sum(-1), COMPOSE),
    Aten("cumsum", "cumsum", "sampler", lambda i: i.whole(2**40, 9, 700).cumsum(-1), SAMPLES),
    Aten("clamp", "clamp_ clamp", "sampler", lambda i: i.normal(9, 700).clamp_(min=-0.5, max=0.5), SAMPLES, exact=True),
    Aten("minimum", "minimum", "sampler", lambda i: torch.minimum(i.whole(99, 9, 70), i.whole(99, 9, 70)), SAMPLES),
    Aten("compare", "eq ge gt lt", "experts sampler", lambda i: (
        i.ties(9, 70) == i.ties(9, 70), i.ties(9, 70) >= i.ties(9, 70), i.ties(9, 70) > i.ties(9, 70),
        i.ties(9, 70) < i.ties(9, 70)), COMPOSE),
    Aten("max", "max", "sampler", lambda i: i.ties(33, 700).max(-1), SAMPLES),
    Aten("topk", "topk", "route", lambda i: i.apart(33, 70).topk(4, -1), "sort and take the first, in the plugin"),
    Aten("topk_set", "topk", "sampler", lambda i: i.apart(33, 700).topk(64, sorted=False).indices.sort(-1).values,
         SAMPLES),
    Aten("sort", "sort", "sampler",
         lambda i: torch.sort(i.ties(9, 700), dim=-1, descending=True, stable=True), SAMPLES),
    Aten("argsort", "argsort", "experts mla_decode attention_decode", lambda i: i.order(700).argsort(), COMPOSE),
    Aten("gather", "gather", "route sampler",
         lambda i: i.normal(9, 70).gather(1, i.whole(70, 9, 8)), COMPOSE, exact=True),
    Aten("scatter", "scatter_", "route sampler",
         lambda i: i.normal(9, 70).scatter_(1, i.order(70)[:8].expand(9, -1), 2.5), COMPOSE, exact=True),
    Aten("index", "index", "embedding experts mla_decode attention_decode",
         lambda i: i.normal(99, 24)[i.whole(99, 33)],
         COMPOSE, exact=True),
    Aten("index_two", "index", "experts",
         lambda i: i.normal(9, 24)[i.whole(9, 33), i.whole(24, 33)], COMPOSE, exact=True),
    Aten("index_select", "index_select", "mla_decode attention_decode", lambda i: i.normal(99, 24).index_select(
        0, i.whole(99, 33)), REFERENCE, exact=True),
    Aten("embedding", "embedding", "embedding", lambda i: F.embedding(i.whole(99, 33), i.normal(99, 24)), REFERENCE,
         exact=True),
    Aten("index_put", "index_put_", "kv_write sampler", lambda i: _written(
        i.normal(2, 64, 24), lambda x: x.__setitem__((slice(None), i.order(64)[:9]), i.normal(2, 9, 24))),
         "use the batched provider (index_copy_)", exact=True),
    Aten("index_copy", "index_copy_", "kv_write", lambda i: i.normal(2, 64, 24).index_copy_(
        1, i.order(64)[:9], i.normal(2, 9, 24)), "use the reference provider (index_put_)", exact=True),
    Aten("index_add", "index_add_", "experts",
         lambda i: i.normal(9, 24).index_add_(0, i.whole(9, 64), i.normal(64, 24)),
         COMPOSE),
    Aten("masked_fill", "masked_fill masked_fill_", "route mla_decode sampler", lambda i: (
        i.normal(9, 70).masked_fill(i.mask(9, 70), -torch.inf),
        i.normal(9, 70).masked_fill_(i.of(torch.ones(9, 70, dtype=torch.bool)), 2.5)), COMPOSE, exact=True),
    Aten("where", "where", "sampler", lambda i: torch.where(i.mask(9, 70), i.normal(9, 70), i.normal(9, 70)), SAMPLES,
         exact=True),
    Aten("tril", "tril triu", "mla_prefill attention_prefill", lambda i: (
        i.of(torch.ones(9, 40, dtype=torch.bool)).tril(31), i.of(torch.ones(9, 40, dtype=torch.bool)).triu(32)),
         COMPOSE),
    Aten("cat", "cat", "mla_prefill mla_decode rope", lambda i: torch.cat((i.normal(9, 3, 16), i.normal(9, 3, 8)), -1),
         COMPOSE, exact=True),
    Aten("stack", "stack", "rope", lambda i: torch.stack((i.normal(9, 3, 8), i.normal(9, 3, 8)), -1), REFERENCE,
         exact=True),
    Aten("pad", "pad", "mla_prefill", lambda i: F.pad(i.normal(3, 9, 16), (0, 8)), REFERENCE, exact=True),
    Aten("repeat_interleave", "repeat_interleave", "mla_prefill mla_decode sampler",
         lambda i: i.normal(3, 9, 16).repeat_interleave(4, 0), "use the batched provider", exact=True),
    Aten("copy_strided", "copy_ empty_like", "rope", lambda i: _written(
        i.normal(9, 3, 16), lambda x: x[..., ::2].copy_(i.normal(9, 3, 8))), REFERENCE, exact=True),
    Aten("bincount", "bincount", "experts", lambda i: i.whole(16, 61).bincount(minlength=17), REFERENCE),
    Aten("unique", "_unique2", "experts", lambda i: i.whole(16, 61).unique(), "use the batched provider"),
    Aten("nonzero", "nonzero_numpy nonzero", "experts", lambda i: i.mask(33, 4).nonzero(as_tuple=True),
         "use the batched provider"),
    Aten("floor_divide", "floor_divide", "experts", lambda i: i.whole(999, 61) // 7, REFERENCE),
    Aten("arange", "arange", "batch", lambda i: torch.arange(3, 99, 4, device=i.device), COMPOSE),
    Aten("zeros", "zeros zeros_like ones ones_like", "batch experts", lambda i: (
        torch.zeros(3, 5, device=i.device), torch.zeros_like(i.normal(3, 5)), torch.ones(3, 5, device=i.device),
        torch.ones_like(i.normal(3, 5))), COMPOSE, exact=True),
    Aten("casts", "to _to_copy", "every op", lambda i: (
        i.whole(2**40, 9, 70).to(torch.int32), i.ties(9, 70).to(torch.int64), i.mask(9, 70).float()), COMPOSE),
    # The noise of seeded draws is made of whole numbers of 64 bits (Philox); 32 of them would repeat draws.
    Aten("int64", "mul add bitwise_and bitwise_and_ bitwise_xor bitwise_xor_ __rshift__", "sampler", lambda i: (
        i.whole(2**31, 9, 70) * i.whole(2**31, 9, 70) + 3, (i.whole(2**62, 9, 70) >> 32) & 0xFFFF,
        (i.whole(2**62, 9, 70) ^ i.whole(2**62, 9, 70)).bitwise_and_(2**40 - 1).bitwise_xor_(2**33)), SAMPLES),
)  # fmt: skip


def climb(bench: Bench) -> Iterator[Finding]:
    """The checks `device.aten.NAME`."""
    for one in TABLE:
        yield from attempt(bench, f"device.aten.{one.name}", partial(_tried, bench, one))


def _tried(bench: Bench, one: Aten, where: Where) -> Iterator[Finding]:
    check = f"device.aten.{one.name}"
    host = torch.device("cpu")
    with torch.inference_mode():
        golden = _flat(one.run(Inputs(bench, one.name, host, True)))
        reference = _flat(one.run(Inputs(bench, one.name, host, False)))
        try:
            found = [t.cpu() for t in _flat(one.run(Inputs(bench, one.name, bench.device.torch_device, False)))]
        except Exception as error:
            lacking = isinstance(error, NotImplementedError) or LACKING.search(first_line(error))
            if not lacking or isinstance(error, torch.OutOfMemoryError):
                raise
            yield Finding(check=check, verdict="limit", rule="it is there", figures={"needed_by": one.needs},
                          text=f"missing: {first_line(error)}; needed by {one.needs}; plan: {one.plan}")  # fmt: skip
            return
    wrong, worst = "", 0.0
    for got, near, gold in zip(found, reference, golden, strict=True):
        text, share = _compared(got, near, gold, one.exact, one.alone)
        worst = max(worst, share)
        wrong = wrong or text
    figures: dict[str, Figure] = {"needed_by": one.needs, "bound_share_max": worst}
    text = f"{wrong}; needed by {one.needs}" if wrong else f"as on the CPU ({worst:.2g} of what is allowed)"
    yield Finding(check=check, verdict="fail" if wrong else "pass", text=text, rule=RULE, figures=figures)


def _flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for one in value for t in _flat(one)]


def _compared(got: Tensor, near: Tensor, gold: Tensor, exact: bool, alone: bool) -> tuple[str, float]:
    """What is wrong, and the largest error as a share of what is allowed."""
    if got.shape != near.shape or got.dtype != near.dtype:
        return f"{got.dtype} {tuple(got.shape)} where {near.dtype} {tuple(near.shape)} is right", 0.0
    if exact or not got.is_floating_point():
        same = (got == near) | (got != got) & (near != near)
        if bool(same.all()):
            return "", 0.0
        at = tuple(int(n) for n in (~same).nonzero()[0])
        return f"{int((~same).sum())} of {same.numel()} differ: {got[at]} where {near[at]} is right at {at}", 0.0
    special = ~torch.isfinite(near)
    if not torch.equal(torch.isfinite(got), ~special) or bool(((got != near) & ~(got != got))[special].any()):
        return "infinities or NaN stand elsewhere than on the CPU", 0.0
    off, near_off = ((one.double() - gold)[~special].abs() for one in (got, near))
    g = gold[~special].abs()
    u = torch.finfo(near.dtype).eps / 2
    typical = float(g.pow(2).mean().sqrt()) if bool((g < 1e30).all()) else 0.0
    room = 4 * float(near_off.max()) * (g / g.max().clamp_min(1e-300)).clamp_min(min(1.0, typical / float(g.max())))
    room = room + ROUNDINGS * u * (g + typical * (2.0**-10 if alone else 1.0)) + torch.finfo(near.dtype).tiny
    share = off / room
    if bool((share <= 1).all()):
        return "", float(share.max())
    worst = int(share.argmax())
    return (f"{int((share > 1).sum())} of {share.numel()} elements off: {float(got[~special][worst]):.6g} where "
            f"{float(gold[~special][worst]):.6g} is right"), float(share.max())  # fmt: skip
