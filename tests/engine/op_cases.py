"""Arguments for every op, and what it should give: each op's formula in float64, one vector at a time.

Written apart from the ops, in loops that are meant to be read. Knows no provider and no tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tests.engine import oracle
from tests.engine.checkpoints import R1, V2, V2_LITE
from torch import Tensor

from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.facts.models import spec_from_config

Case = tuple[str, tuple[Any, ...], Any]
"""A name, the op's arguments, and what it should give, in float64."""

PAGE = 16


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=draw(seed)) * scale).to(dtype)


def embedding(dtype: torch.dtype) -> Iterator[Case]:
    table = normal(37, 19, dtype=dtype)
    for ids in ([5], [0, 36, 5, 5, 0], list(range(37)) * 3):
        yield f"{len(ids)} rows", (torch.tensor(ids), table), torch.stack([table[i] for i in ids]).double()


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = [r / math.sqrt((r * r).sum().item() / len(r) + eps) * weight.double() for r in x.double()]
    return torch.stack(rows)


def norm_rows(dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    for rows, size in ((1, 7), (5, 64), (33, 101)):
        x = normal(rows, size, dtype=dtype)
        x[0] *= 100
        x[-1] *= 1e-3  # where eps matters
        yield f"{rows}x{size}", x, (torch.rand(size, generator=draw(1)) + 0.5).to(dtype), 1e-6
    yield "zeros", torch.zeros(2, 8, dtype=dtype), torch.ones(8, dtype=dtype), 1e-6
    yield "large eps", normal(3, 8, dtype=dtype), torch.ones(8, dtype=dtype), 0.5


def rms_norm(dtype: torch.dtype) -> Iterator[Case]:
    for name, x, weight, eps in norm_rows(dtype):
        yield name, (x, weight, eps), _norm(x, weight, eps)


def add_rms_norm(dtype: torch.dtype) -> Iterator[Case]:
    for name, x, weight, eps in norm_rows(dtype):
        residual = normal(*x.shape, dtype=dtype, seed=2)
        total = (residual.double() + x.double()).to(dtype)  # the stream itself is kept in the dtype
        yield name, (x, residual, weight, eps), (_norm(total, weight, eps), total.double())


def linear(dtype: torch.dtype) -> Iterator[Case]:
    for rows, size_in, size_out in ((1, 32, 32), (2, 31, 17), (8, 65, 33), (9, 7, 1), (33, 128, 96), (130, 33, 70)):
        x, weight = normal(rows, size_in, dtype=dtype), normal(size_out, size_in, dtype=dtype, seed=1)
        product = x.double() @ weight.double().T
        yield f"{rows}x{size_in}x{size_out}", (x, weight), product
        bias = normal(size_out, dtype=dtype, seed=2)
        yield f"{rows}x{size_in}x{size_out} bias", (x, weight, bias), product + bias.double()


def silu_mul(dtype: torch.dtype) -> Iterator[Case]:
    for rows, inner in ((1, 5), (33, 48)):
        x = normal(rows, 2 * inner, dtype=dtype, scale=4)
        x[0, 0] = -90  # exp overflows if done the wrong way round
        gate, up = x.double()[:, :inner], x.double()[:, inner:]
        yield f"{rows}x{inner}", (x,), gate / (1 + (-gate).exp()) * up


def rope(dtype: torch.dtype) -> Iterator[Case]:
    for rows, heads, size in ((1, 1, 8), (5, 3, 16), (33, 1, 64)):
        x = normal(rows, heads, size, dtype=dtype)
        angle = torch.rand(rows, size // 2, generator=draw(1), dtype=torch.float64) * 500
        args = (x, angle.cos().float(), angle.sin().float())
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        pairs = torch.view_as_complex(x.double().view(rows, heads, -1, 2))
        yield f"{rows}x{heads}x{size} pairs", (*args, True), torch.view_as_real(pairs * turn).flatten(2)
        halves = torch.complex(x.double()[..., : size // 2], x.double()[..., size // 2 :]) * turn
        yield f"{rows}x{heads}x{size} halves", (*args, False), torch.cat((halves.real, halves.imag), -1)


def kv_write(dtype: torch.dtype) -> Iterator[Case]:
    for heads, size in ((1, 24), (2, 9)):
        for slots in ([7], [0, 15, 16, 63, 31], list(range(40, 9, -1))):
            cache, new = normal(heads, 4, PAGE, size, dtype=dtype), normal(len(slots), heads, size, dtype=dtype, seed=1)
            want = cache.double()
            for slot, value in zip(slots, new.double(), strict=True):
                for h in range(heads):
                    want[h, slot // PAGE, slot % PAGE] = value[h]
            yield f"{heads}x{size} {len(slots)} rows", (cache.clone(), torch.tensor(slots), new), want
            wider = normal(len(slots), heads, 20, dtype=dtype)
            wider[..., 3:10] = new[..., -7:]
            parts = (new[..., :-7].contiguous(), wider[..., 3:10])
            yield f"{heads}x{size} {len(slots)} rows in two parts", (cache.clone(), torch.tensor(slots), *parts), want


PASTS = ((0, 5), (0, 16), (0, 33), (16, 7), (37, 19), (31, 1), (15, 2), (64, 32))
"""Of a prefill chunk: places before it, and its rows. Page tails, whole pages, one row."""
LENGTHS = ([1], [16], [17], [1, 16, 17, 40, 33], [32, 32], [5] * 9)
"""Of decodes: the context of each, its new token included."""


def _pages(sequences: list[int]) -> list[list[int]]:
    """Shuffled pages for each sequence: no two share one, and page 0 is nobody's."""
    free = (torch.randperm(sum(-(-n // PAGE) for n in sequences), generator=draw(4)) + 1).tolist()
    return [[free.pop() for _ in range(-(-n // PAGE))] for n in sequences]


def _cache(pages: list[list[int]], lengths: list[int], heads: int, size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`[heads, pages, page size, size]`, random where a sequence is; elsewhere the large numbers of a last owner."""
    cache = torch.full((heads, max(max(p) for p in pages) + 2, PAGE, size), 3e4).to(dtype)
    values = normal(sum(lengths), heads, size, dtype=dtype, seed=seed)
    at = 0
    for own, length in zip(pages, lengths, strict=True):
        for position in range(length):
            cache[:, own[position // PAGE], position % PAGE] = values[at]
            at += 1
    return cache


def _read(cache: Tensor, pages: list[int], length: int) -> Tensor:
    """`[heads, length, size]`."""
    return torch.stack([cache[:, pages[p // PAGE], p % PAGE] for p in range(length)], 1).double()


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query over its whole context: `[d]`, `[L, d]`, `[L, v]` to `[v]`."""
    scores = (k @ q * scale).tolist()
    weight = torch.tensor([math.exp(s - max(scores)) for s in scores], dtype=torch.float64)
    return weight / weight.sum() @ v


def _decode_plan(pages: list[list[int]], lengths: list[int]) -> DecodePlan:
    width = max(map(len, pages))
    blocked = torch.arange(width * PAGE) >= torch.tensor(lengths)[:, None]
    table = torch.tensor([p + [0] * (width - len(p)) for p in pages])
    return DecodePlan(table, torch.tensor(lengths), blocked if blocked.any() else None)


HEADS = ((4, 2, 16), (3, 3, 10), (6, 1, 24), (7, 1, 64), (4, 2, 128))
"""Heads, KV heads, head size."""


def attention_prefill(dtype: torch.dtype) -> Iterator[Case]:
    for heads, kv_heads, size in HEADS:
        for past, rows in PASTS:
            pages, total = _pages([past + rows]), past + rows
            k_cache, v_cache = (_cache(pages, [total], kv_heads, size, dtype, s) for s in (1, 2))
            q, scale = normal(rows, heads, size, dtype=dtype, seed=3), 0.3
            k, v = _read(k_cache, pages[0], total), _read(v_cache, pages[0], total)
            want = torch.zeros(rows, heads, size, dtype=torch.float64)
            for t in range(rows):
                for h in range(heads):
                    seen, g = past + t + 1, h // (heads // kv_heads)
                    want[t, h] = _attend(q[t, h].double(), k[g, :seen], v[g, :seen], scale)
            plan = PrefillPlan(0, rows, past, torch.tensor(pages[0]))
            yield f"{heads}/{kv_heads}x{size} {past}+{rows}", (q, k_cache, v_cache, plan, scale), want


def attention_decode(dtype: torch.dtype) -> Iterator[Case]:
    for heads, kv_heads, size in HEADS:
        for lengths in LENGTHS:
            pages = _pages(lengths)
            k_cache, v_cache = (_cache(pages, lengths, kv_heads, size, dtype, s) for s in (1, 2))
            q, scale = normal(len(lengths), heads, size, dtype=dtype, seed=3), 0.3
            want = torch.zeros(len(lengths), heads, size, dtype=torch.float64)
            for d, length in enumerate(lengths):
                k, v = _read(k_cache, pages[d], length), _read(v_cache, pages[d], length)
                for h in range(heads):
                    g = h // (heads // kv_heads)
                    want[d, h] = _attend(q[d, h].double(), k[g], v[g], scale)
            args = (q, k_cache, v_cache, _decode_plan(pages, lengths), scale)
            yield f"{heads}/{kv_heads}x{size} {lengths}", args, want


def mla_absorb(dtype: torch.dtype) -> Iterator[Case]:
    for rows, heads, size_in, size_out in ((1, 3, 12, 18), (9, 4, 22, 36), (33, 1, 36, 5)):
        x, w = normal(rows, heads, size_in, dtype=dtype), normal(heads, size_in, size_out, dtype=dtype, seed=1)
        want = torch.stack([x[:, h].double() @ w[h].double() for h in range(heads)], 1)
        yield f"{rows}x{heads}x{size_in}x{size_out}", (x, w), want
        turned = w.transpose(1, 2).contiguous().transpose(1, 2)
        yield f"{rows}x{heads}x{size_in}x{size_out} as a view", (x, turned), want


LATENTS = ((3, 12, 8, 10, 18), (4, 22, 16, 24, 36))
"""Heads, nope, rope, value (wider and narrower than nope), rank."""


def mla_prefill(dtype: torch.dtype) -> Iterator[Case]:
    for heads, nope, turned, value, rank in LATENTS:
        uk = normal(heads, nope, rank, dtype=dtype, seed=5, scale=rank**-0.5)
        uv = normal(heads, value, rank, dtype=dtype, seed=6, scale=rank**-0.5)
        for past, rows in PASTS:
            pages, total = _pages([past + rows]), past + rows
            cache = _cache(pages, [total], 1, rank + turned, dtype, 1)
            q, q_pe = normal(rows, heads, nope, dtype=dtype, seed=3), normal(rows, heads, turned, dtype=dtype, seed=4)
            held, scale = _read(cache, pages[0], total)[0], 0.3
            want = torch.zeros(rows, heads, value, dtype=torch.float64)
            for h in range(heads):
                k = torch.cat((held[:, :rank] @ uk[h].double().T, held[:, rank:]), 1)
                v = held[:, :rank] @ uv[h].double().T
                for t in range(rows):
                    seen = past + t + 1
                    want[t, h] = _attend(torch.cat((q[t, h], q_pe[t, h])).double(), k[:seen], v[:seen], scale)
            plan = PrefillPlan(0, rows, past, torch.tensor(pages[0]))
            yield f"{heads}x{value} {past}+{rows}", (q, q_pe, cache, uk, uv, plan, scale), want


def mla_decode(dtype: torch.dtype) -> Iterator[Case]:
    for heads, _, turned, _, rank in LATENTS:
        for lengths in LENGTHS:
            pages = _pages(lengths)
            cache = _cache(pages, lengths, 1, rank + turned, dtype, 1)
            q = normal(len(lengths), heads, rank, dtype=dtype, seed=3)
            q_pe, scale = normal(len(lengths), heads, turned, dtype=dtype, seed=4), 0.2
            want = torch.zeros(len(lengths), heads, rank, dtype=torch.float64)
            for d, length in enumerate(lengths):
                held = _read(cache, pages[d], length)[0]
                for h in range(heads):
                    want[d, h] = _attend(torch.cat((q[d, h], q_pe[d, h])).double(), held, held[:, :rank], scale)
            yield f"{heads}x{rank} {lengths}", (q, q_pe, cache, _decode_plan(pages, lengths), scale), want


def _spread(chosen: list[dict[int, float]], experts: int) -> Tensor:
    want = torch.zeros(len(chosen), experts, dtype=torch.float64)
    for n, row in enumerate(chosen):
        for e, weight in row.items():
            want[n, e] = weight
    return want


def route(dtype: torch.dtype) -> Iterator[Case]:
    """Expected as `[N, E]`: the weight of each expert, 0 where it is not chosen."""
    ungrouped = R1 | {"n_group": 1, "topk_group": 1}
    for name, config in (("v3", R1), ("v2", V2), ("v2-lite", V2_LITE), ("ungrouped", ungrouped)):
        spec = spec_from_config(config).experts
        assert spec is not None
        for rows in (1, 70):
            x, gate = normal(rows, 24, dtype=dtype), normal(8, 24, dtype=torch.float32, seed=1, scale=24**-0.5)
            bias = torch.rand(8, generator=draw(2)) * 2 - 1 if spec.correction_bias else None
            logits = (x.double() @ gate.double().T).tolist()
            biases = [0.0] * 8 if bias is None else bias.double().tolist()
            want = _spread([oracle.route(config, row, biases) for row in logits], 8)
            yield f"{name} {rows} rows", (x, gate, bias, spec), want


def experts(dtype: torch.dtype) -> Iterator[Case]:
    count, inner, hidden = 7, 13, 22
    gate_up = normal(count, 2 * inner, hidden, dtype=dtype, seed=1, scale=hidden**-0.5)
    down = normal(count, hidden, inner, dtype=dtype, seed=2, scale=inner**-0.5)
    choices = {
        "one row": torch.tensor([[6, 0, 3]]),
        "one row, one expert": torch.tensor([[2]]),
        "all rows to one expert": torch.full((12, 1), 4),
        "empty experts": torch.tensor([[1, 5], [5, 1], [1, 5]]),
        "many rows": torch.stack([torch.randperm(count, generator=draw(i))[:3] for i in range(60)]),
        "every expert": torch.arange(count).expand(3, -1),
    }
    for name, chosen in choices.items():
        x, weight = normal(len(chosen), hidden, dtype=dtype, seed=3), torch.rand(chosen.shape, generator=draw(5)) * 2
        want = torch.zeros(len(chosen), hidden, dtype=torch.float64)
        for n, row in enumerate(chosen.tolist()):
            for place, e in enumerate(row):
                gate, up = (x[n].double() @ gate_up[e].double().T).split(inner)
                want[n] += weight[n, place].double() * ((gate / (1 + (-gate).exp()) * up) @ down[e].double().T)
        yield name, (x, (gate_up, down), chosen, weight), want
        base = normal(len(chosen), hidden, dtype=dtype, seed=6)
        yield f"{name}, and a base", (x, (gate_up, down), chosen, weight, base), want + base.double()


CASES: dict[str, Callable[[torch.dtype], Iterator[Case]]] = {
    f.__name__: f
    for f in (embedding, rms_norm, add_rms_norm, linear, silu_mul, rope, kv_write, attention_prefill, attention_decode,
              mla_absorb, mla_prefill, mla_decode, route, experts)
}  # fmt: skip
