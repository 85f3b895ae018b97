"""Arguments for every op, in the shapes that the model on trial really uses, from seed and generator only.

Owns the cases: decode (one row), small and ragged batches, prefill chunks with and without a past, page tails, empty
experts, masked places, ties, views, large magnitudes, infinities and NaN. Knows no provider and no tolerance.

Sums keep the model's own lengths; where an op only repeats itself (output columns, experts) a large model's case takes
some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from twinline.engine.ops.plan import PrefillPlan
from twinline.facts.models import Experts, GroupedQuery, Latent, ModelSpec
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.case import PAGE, Case, Maker, View

MOST_COLUMNS, MOST_EXPERTS, MOST_HEADS = 1024, 16, 8
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256)  # of decodes: libraries keep kernels of their own for such counts of rows


def _poisoned(x: Tensor) -> Tensor:
    """A NaN and an infinity, in rows of their own."""
    x = x.clone()
    x[1 % len(x), ..., 0] = torch.nan
    x[2 % len(x), ..., -1] = torch.inf
    return x


def _embedding(m: Maker) -> Iterator[Case]:
    rows = min(m.spec.vocab, 4 * MOST_COLUMNS)
    table = m.normal(rows, m.spec.hidden)
    yield m.case("one row", m.indices(rows, 1), table)
    yield m.case("the first and the last", torch.tensor([0, rows - 1, 0, rows - 1, 5, 5, rows - 2]) % rows, table)
    yield m.case("a chunk", m.indices(rows, 131), table)
    yield m.case("NaN and infinities", torch.tensor([1, 2, 3]) % rows, _poisoned(table))


def _norm_sizes(m: Maker) -> list[int]:
    a = m.spec.attention
    sizes = [m.spec.hidden]
    if isinstance(a, Latent):
        sizes += [a.kv_rank, *([a.q_rank] if a.q_rank else [])]
    elif a.head_norms:
        sizes.append(a.head_size)
    return sorted(set(sizes), reverse=True)


def _norm_rows(m: Maker) -> Iterator[tuple[str, Tensor, Tensor]]:
    for size in _norm_sizes(m):
        weight = (m.normal(size, dtype=torch.float64).abs() + 0.5).to(m.dtype)
        for rows in (1, 7, 131):
            x = m.normal(rows, size)
            if rows > 1:
                x[0] *= 100
                x[-1] *= 1e-3  # where eps matters
            yield f"{rows} rows of {size}", x, weight
    size = m.spec.hidden
    weight = torch.ones(size, dtype=m.dtype)
    yield "many rows", m.normal(-(-2 * 65536 // size), size), weight
    yield "a row of zeros", torch.zeros(2, size, dtype=m.dtype), weight
    yield "NaN", _poisoned(m.normal(5, size))[:2], weight


def _rms_norm(m: Maker) -> Iterator[Case]:
    for name, x, weight in _norm_rows(m):
        yield m.case(name, x, weight, m.spec.norm_eps)
    wider = m.normal(9, m.spec.hidden + 24)
    yield m.case("a view", View(wider, 8, m.spec.hidden), torch.ones(m.spec.hidden, dtype=m.dtype), m.spec.norm_eps)


def _add_rms_norm(m: Maker) -> Iterator[Case]:
    for name, x, weight in _norm_rows(m):
        yield m.case(name, x, m.normal(*x.shape), weight, m.spec.norm_eps)


def _products(spec: ModelSpec) -> list[tuple[str, int, int]]:
    """The model's linear layers: name, in, out."""
    a, x = spec.attention, spec.hidden
    if isinstance(a, Latent):
        wide_q = a.heads * (a.nope + a.rope)
        layers = [("down", x, (a.q_rank or wide_q) + a.kv_rank + a.rope), ("out", a.heads * a.value, x)]
        layers += [("q_up", a.q_rank, wide_q)] if a.q_rank else []
    else:
        rows, kv_rows = a.heads * a.head_size, a.kv_heads * a.head_size
        layers = [("q", x, rows), ("k", x, kv_rows)] if a.head_norms else [("qkv", x, rows + 2 * kv_rows)]
        layers.append(("out", rows, x))
    layers += [("gate_up", x, 2 * spec.inner), ("mlp down", spec.inner, x), ("head", x, spec.vocab)]
    return layers


def _linear(m: Maker) -> Iterator[Case]:
    seen: set[tuple[int, int]] = set()
    for name, inner, outer in _products(m.spec):
        if (inner, outer) in seen:
            continue
        seen.add((inner, outer))
        columns = min(outer, MOST_COLUMNS)
        weight = m.normal(columns, inner, scale=inner**-0.5)
        for rows in (1, 7, 131):
            yield m.case(f"{name} {inner}->{columns}", m.normal(rows, inner), weight)
    name, inner, outer = _products(m.spec)[0]
    columns = min(outer, MOST_COLUMNS)
    weight = m.normal(columns, inner, scale=inner**-0.5)
    many = min(max(2 * 65536 // columns, 64), 1024)
    yield m.case(f"{name}, many rows", m.normal(many, inner), weight)
    for rows in BATCHES:
        yield m.case(f"{name}, a batch", m.normal(rows, inner), weight)
    yield m.case(f"{name} with bias", m.normal(9, inner), weight, m.normal(columns))
    yield m.case(f"{name}, a view", View(m.normal(9, inner + 24), 8, inner), weight)
    yield m.case(f"{name}, large", m.normal(9, inner, scale=500.0), m.normal(columns, inner, scale=inner**-0.5))
    yield m.case(f"{name}, NaN and infinities", _poisoned(m.normal(5, inner)), weight)
    yield m.case("odd sizes 65->33", m.normal(8, 65), m.normal(33, 65, scale=65**-0.5))


def _silu_mul(m: Maker) -> Iterator[Case]:
    sizes = {m.spec.inner} | ({m.spec.experts.inner} if m.spec.experts else set())
    for inner in sorted(sizes):
        for rows in (1, 7, 131):
            x = m.normal(rows, 2 * inner, scale=3.0)
            x[0, 0], x[0, 1] = -80, 80  # exp overflows if done the wrong way round
            yield m.case(f"{rows} rows of {inner}", x)
    yield m.case("many rows", m.normal(-(-2 * 65536 // m.spec.inner), 2 * m.spec.inner, scale=3.0))
    yield m.case("NaN and infinities", _poisoned(m.normal(5, 2 * m.spec.inner)).abs())


def _rope(m: Maker) -> Iterator[Case]:
    a, half = m.spec.attention, m.spec.rope.width // 2
    heads = min(a.heads, MOST_HEADS)
    for rows, count in ((1, heads), (7, 1), (131, heads), (-(-2 * 65536 // (heads * 2 * half)), heads)):
        positions = np.sort(m.draw.integers(0, m.spec.context, rows))
        angle = torch.from_numpy(positions[:, None] * m.spec.rope.theta ** (-np.arange(half) / half))
        turn = (angle.cos().float(), angle.sin().float(), m.spec.rope.interleaved)
        yield m.case(f"{rows} rows", m.normal(rows, count, 2 * half), *turn)
        nope = a.nope if isinstance(a, Latent) else 0
        yield m.case(f"{rows} rows, a view", View(m.normal(rows, count, nope + 2 * half), nope, 2 * half), *turn)


def _cache_rows(m: Maker) -> tuple[int, int]:
    a = m.spec.attention
    return (1, a.kv_rank + a.rope) if isinstance(a, Latent) else (min(a.kv_heads, MOST_HEADS), a.head_size)


def _kv_write(m: Maker) -> Iterator[Case]:
    heads, size = _cache_rows(m)
    for name, slots in (("one row", [21]), ("page tails", [0, 15, 16, 63, 31]), ("a run", [*range(90, 9, -1)]),
                        ("scattered", m.shuffled(128)[:67])):  # fmt: skip
        rows = m.normal(len(slots), heads, size)
        yield m.case(name, m.normal(heads, 8, PAGE, size), torch.tensor(slots), rows)
    five, cache = torch.tensor([3, 77, 5, 6, 9]), m.normal(heads, 8, PAGE, size)
    yield m.case("NaN and infinities", cache, five, _poisoned(m.normal(5, heads, size)))
    turned = m.spec.attention.rope if isinstance(m.spec.attention, Latent) else size // 2
    parts = m.normal(5, heads, size - turned), View(m.normal(5, heads, size + 8), 8, turned)
    yield m.case("two parts side by side, one a view", cache, five, *parts)


def _grouped(m: Maker) -> tuple[int, int, int, float]:
    a = m.spec.attention
    assert isinstance(a, GroupedQuery)
    times = a.heads // a.kv_heads
    kv_heads = max(1, min(a.kv_heads, MOST_HEADS // times))
    return kv_heads * times, kv_heads, a.head_size, a.scale


def _attention_prefill(m: Maker) -> Iterator[Case]:
    heads, kv_heads, size, scale = _grouped(m)
    for past, rows in m.pasts():
        for name, times in (("", 1.0), (" with large scores", 20.0)):
            pages = m.pages([past + rows])
            k, v = (m.cache(pages, [past + rows], kv_heads, size) for _ in range(2))
            plan = PrefillPlan(0, rows, past, torch.tensor(pages[0]))
            yield m.case(f"{rows} rows after {past}{name}", m.normal(rows, heads, size, scale=times), k, v, plan, scale)


def _attention_decode(m: Maker) -> Iterator[Case]:
    heads, kv_heads, size, scale = _grouped(m)
    for lengths in m.lengths():
        for name, times in (("", 1.0), (" with large scores", 20.0)):
            pages = m.pages(lengths)
            k, v = (m.cache(pages, lengths, kv_heads, size) for _ in range(2))
            q = m.normal(len(lengths), heads, size, scale=times)
            yield m.case(f"contexts {_said(lengths)}{name}", q, k, v, m.decode_plan(pages, lengths), scale)


def _said(lengths: list[int]) -> str:
    return f"{len(lengths)} of {lengths[0]}" if len(set(lengths)) == 1 else "/".join(map(str, lengths))


def _latent(m: Maker) -> tuple[int, Latent]:
    a = m.spec.attention
    assert isinstance(a, Latent)
    return min(a.heads, MOST_HEADS), a


def _mla_absorb(m: Maker) -> Iterator[Case]:
    heads, a = _latent(m)
    many = min(max(2 * 65536 // (heads * a.kv_rank), 64), 2048)
    for rows in (1, 7, 33, *BATCHES, many):
        # As in the model: the query is a part of wider rows, W_UV is turned.
        q = View(m.normal(rows, heads, a.nope + a.rope), 0, a.nope)
        yield m.case(f"{rows} queries", q, m.normal(heads, a.nope, a.kv_rank, scale=a.nope**-0.5))
        w_uv = View(m.normal(heads, a.value, a.kv_rank, scale=a.kv_rank**-0.5), turned=True)
        yield m.case(f"{rows} results", m.normal(rows, heads, a.kv_rank), w_uv)


def _mla_prefill(m: Maker) -> Iterator[Case]:
    heads, a = _latent(m)
    uk = m.normal(heads, a.nope, a.kv_rank, scale=a.kv_rank**-0.5)
    uv = m.normal(heads, a.value, a.kv_rank, scale=a.kv_rank**-0.5)
    for past, rows in m.pasts():
        for name, times in (("", 1.0), (" with large scores", 20.0)):
            pages = m.pages([past + rows])
            cache = m.cache(pages, [past + rows], 1, a.kv_rank + a.rope)
            q = View(m.normal(rows, heads, a.nope + a.rope, scale=times), 0, a.nope)
            q_pe = m.normal(rows, heads, a.rope, scale=times)
            plan = PrefillPlan(0, rows, past, torch.tensor(pages[0]))
            yield m.case(f"{rows} rows after {past}{name}", q, q_pe, cache, uk, uv, plan, a.scale)


def _mla_decode(m: Maker) -> Iterator[Case]:
    heads, a = _latent(m)
    for lengths in m.lengths():
        for name, times in (("", 1.0), (" with large scores", 20.0)):
            pages = m.pages(lengths)
            cache = m.cache(pages, lengths, 1, a.kv_rank + a.rope)
            q = m.normal(len(lengths), heads, a.kv_rank, scale=times)
            q_pe = m.normal(len(lengths), heads, a.rope, scale=times)
            plan = m.decode_plan(pages, lengths)
            yield m.case(f"contexts {_said(lengths)}{name}", q, q_pe, cache, plan, a.scale)


def _experts_of(m: Maker) -> Experts:
    assert m.spec.experts is not None
    return m.spec.experts


def _route(m: Maker) -> Iterator[Case]:
    e, hidden = _experts_of(m), m.spec.hidden
    gate = m.normal(e.count, hidden, scale=hidden**-0.5, dtype=torch.float32)
    bias = m.normal(e.count, scale=0.2, dtype=torch.float32) if e.correction_bias else None
    for rows in (1, 7, 131, 512, *BATCHES):
        yield m.case(f"{rows} rows", m.normal(rows, hidden), gate, bias, e)
    yield m.case("rows far apart", m.normal(33, hidden, scale=8.0), gate, bias, e)
    near = gate.clone()
    near[1::2] = near[:-1:2]  # every expert beside one that scores as it does: ties, and negative biased scores
    yield m.case("ties", m.normal(33, hidden), near, None if bias is None else torch.full_like(bias, -2.0), e)
    yield m.case("rows of zeros", torch.zeros(3, hidden, dtype=m.dtype), gate, bias, e)


def _experts(m: Maker) -> Iterator[Case]:
    e, hidden = _experts_of(m), m.spec.hidden
    count, inner = min(e.count, MOST_EXPERTS), min(e.inner, 256)
    chosen = min(e.per_token, count)
    gate_up = m.normal(count, 2 * inner, hidden, scale=hidden**-0.5)
    down = m.normal(count, hidden, inner, scale=inner**-0.5)
    many = max(min(65536 // hidden, 512), 33)
    choices = {
        "one row": m.choices(1, count, chosen),
        "three rows to the last experts": torch.arange(count - chosen, count).expand(3, -1),
        "all rows to one set of experts": m.choices(1, count, chosen).expand(17, -1),
        "every row its own": m.choices(61, count, chosen),
        "many rows": m.choices(many, count, chosen),
        **{f"a batch of {n} to one set": m.choices(1, count, chosen).expand(n, -1) for n in BATCHES if n <= many},
    }
    for name, chosen_NK in choices.items():
        shares = torch.from_numpy(m.draw.random(tuple(chosen_NK.shape)) * 2).float()
        yield m.case(name, m.normal(len(chosen_NK), hidden), (gate_up, down), chosen_NK.contiguous(), shares)
    chosen_NK = m.choices(9, count, chosen)
    shares = torch.from_numpy(m.draw.random(tuple(chosen_NK.shape))).float()
    base = m.normal(9, hidden)
    yield m.case("beside what shared experts give", m.normal(9, hidden), (gate_up, down), chosen_NK, shares, base)
    chosen_NK = m.choices(5, count, chosen)
    x = m.normal(5, hidden)
    x[1, 0] = torch.nan
    yield m.case("NaN in one row", x, (gate_up, down), chosen_NK, torch.ones(chosen_NK.shape))


MAKERS: dict[str, Callable[[Maker], Iterator[Case]]] = {
    "embedding": _embedding, "rms_norm": _rms_norm, "add_rms_norm": _add_rms_norm, "linear": _linear,
    "silu_mul": _silu_mul, "rope": _rope, "kv_write": _kv_write, "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode, "mla_absorb": _mla_absorb, "mla_prefill": _mla_prefill,
    "mla_decode": _mla_decode, "route": _route, "experts": _experts,
}  # fmt: skip


def cases(bench: Bench, op: str, dtype: torch.dtype) -> list[Case]:
    """All cases of an op in a dtype."""
    return list(MAKERS[op](Maker(bench, op, dtype)))
