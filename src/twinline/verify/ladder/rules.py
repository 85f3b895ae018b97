"""When is a result right? Three rules together: a bound on every element, a ratio to a reference chip, a bias test.

Owns the rules and their limits. Works on float64 arrays; knows no op by more than its class, no device and no torch.

Each alone lets something pass that the others see. A fixed relative tolerance passes truncating stores in bfloat16 and
a systematic factor of 1 + 2**-9; a mean hides one bad row in a thousand; a bound alone passes what is biased within it.

* bound: |y - g| <= u |g| + (4 sqrt(K) ua + inner u) S for every element (2u for float32), where g is the golden value,
  u the unit roundoff of the op's dtype (float32 2**-24, float16 2**-11, bfloat16 2**-8), ua that of a float32
  accumulator, K the longest sum, S the sum of magnitudes, `inner` the roundings to the dtype that providers may make
  on the way; what is below the normal range may be lost besides. 4 sqrt(K) is the probabilistic error bound of a sum
  (Higham and Mary, 2019).
* ratio: largest and mean relative error (on |g| > 2**-6 of the typical size) and root mean square error, each within
  a factor of the same figures of a reference chip on the same inputs (or of what rounding itself would make of it,
  once at the end or, in attention, on the way).
* bias: over 20,000 elements and more, the mean signed relative error is not significantly (z < 5, rows as units) off
  zero by a tenth of u or more (float32: by u, in attention by 16u: a chip's exponentials err to one side, the
  ex2.approx of PTX by up to 4u. An attention of silicon that errs a fifth as much as the reference was 6.6u off).

Infinities and NaN stand exactly where the golden ones stand; moves are right to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from twinline.verify.ladder.finding import Figure
from twinline.verify.ladder.golden import Array, Golden

ACCUMULATOR = 2.0**-24
SMALL = 2.0**-6  # of the typical size: what is smaller has no relative error worth the name
Z = 5.0
BIAS_ELEMENTS = 20_000
BIAS_ROWS = 64


@dataclass(frozen=True)
class Precision:
    """`unit`: unit roundoff; `bits`: significant bits; `largest`, `least`: of the normal range (`least` is what may be
    lost when denormals are flushed)."""

    name: str
    unit: float
    bits: int
    largest: float
    least: float

    @property
    def wide(self) -> bool:
        return self.bits >= 24


PRECISIONS = {
    "float32": Precision("float32", 2.0**-24, 24, float(np.finfo(np.float32).max), 2.0**-126),
    "bfloat16": Precision("bfloat16", 2.0**-8, 8, (2 - 2.0**-7) * 2.0**127, 2.0**-126),
    "float16": Precision("float16", 2.0**-11, 11, 65504.0, 2.0**-14),
}


@dataclass(frozen=True)
class Limits:
    """How many times the reference chip's largest relative, mean relative and root mean square error is allowed, and
    how many unit roundoffs of float32 a bias may have there."""

    largest: float
    mean: float
    root: float
    bias: float = 1.0

    def times(self, factor: float) -> Limits:
        return Limits(self.largest * factor, self.mean * factor, self.root * factor, self.bias)


PRODUCT, EXPERTS, REST = Limits(2.0, 1.2, 1.2), Limits(5.0, 1.5, 1.5), Limits(10.0, 2.0, 2.0)
ATTENTION = Limits(5.0, 1.5, 1.5, bias=16.0)
CLASSES = {
    "linear": PRODUCT, "mla_absorb": PRODUCT, "rms_norm": PRODUCT, "add_rms_norm": PRODUCT,
    "attention_prefill": ATTENTION, "attention_decode": ATTENTION, "mla_prefill": ATTENTION, "mla_decode": ATTENTION,
    "experts": EXPERTS,
}  # fmt: skip


def limits(op: str) -> Limits:
    return CLASSES.get(op, REST)


@dataclass(frozen=True)
class Judged:
    """`broken` is the first rule that does not hold, empty where all do. `text` is seen beside allowed; `excess` is
    how many times over the allowed the worst figure is (below 1: within)."""

    broken: str
    text: str
    excess: float
    figures: dict[str, Figure]


@dataclass(frozen=True)
class _Errors:
    largest: float
    mean: float
    root: float


def judge(y: Array, golden: Golden, reference: Array, precision: Precision, allowed: Limits) -> Judged:
    """`y` and the reference chip's result, as float64, beside the golden one."""
    g = golden.value
    if y.shape != g.shape:
        return _wrong("shape", f"shape {y.shape} where {g.shape} is right")
    if not g.size:
        return Judged("", "nothing to compare", 0.0, {})
    if golden.exact:
        return _exactly(y, g)
    finite, wrong = _special(y, g, precision)
    if wrong:
        return wrong
    if not finite.any():
        return Judged("", "infinities and NaN stand where they should", 0.0, {})
    spread = np.broadcast_to(golden.spread, g.shape)
    room = bound(g, spread, golden, precision)
    off = np.abs(y - g)
    over = np.where(finite, off / room, 0.0)
    worst = np.unravel_index(int(over.argmax()), g.shape)
    misses = int((over > 1).sum())
    figures: dict[str, Figure] = {"bound_share_max": float(over[worst]), "elements": int(finite.sum())}
    place = ", ".join(map(str, worst))
    if misses:
        text = (f"{misses} of {int(finite.sum())} elements beyond the bound; worst at ({place}): {y[worst]:.6g} where "
                f"{g[worst]:.6g} is right, off by {off[worst]:.2g}, allowed {room[worst]:.2g}")  # fmt: skip
        return Judged("bound", text, float(over[worst]), figures)
    keep = finite & np.isfinite(reference)
    ratio = _ratio(y, golden, reference, keep, precision, allowed, figures)
    biased = _biased(y, g, reference, keep, precision, allowed, figures)
    near = f"worst element at {over[worst]:.2g} of its bound"
    for found in (ratio, biased):
        if found.broken:
            return found
    return Judged("", f"{near}, {ratio.text}", max(float(over[worst]), ratio.excess), figures)


def bound(g: Array, spread: Array, golden: Golden, precision: Precision) -> Array:
    """What each element may be off by."""
    own = (2 if precision.wide else 1) * precision.unit
    inner = 0.0 if precision.wide else golden.inner * precision.unit
    room = own * np.abs(g) + (4 * math.sqrt(golden.terms) * ACCUMULATOR + inner) * spread + precision.least
    return np.asarray(np.where(np.isfinite(room), room, np.inf))


def _wrong(rule: str, text: str) -> Judged:
    return Judged(rule, text, math.inf, {})


def _exactly(y: Array, g: Array) -> Judged:
    same = (y == g) | (np.isnan(y) & np.isnan(g))
    if same.all():
        return Judged("", "right to the bit", 0.0, {"elements": int(g.size)})
    at = np.unravel_index(int((~same).argmax()), g.shape)
    text = (f"{int((~same).sum())} of {g.size} elements differ, the first at ({', '.join(map(str, at))}): {y[at]:.6g} "
            f"where {g[at]:.6g} is right")  # fmt: skip
    return _wrong("exact", text)


def _special(y: Array, g: Array, precision: Precision) -> tuple[Array, Judged | None]:
    """Where both are finite, and what is wrong where they are not. Near the end of the range either will do."""
    edge = np.abs(g) > precision.largest * (1 - 2 * precision.unit)
    either = edge & np.isfinite(g) & (np.abs(g) < precision.largest * (1 + 4 * precision.unit))
    want = np.where(edge & ~either, np.sign(g) * np.inf, g)
    wrong = (np.isnan(y) != np.isnan(want)) | (np.isinf(y) != np.isinf(want)) | (np.isinf(y) & (y != want))
    wrong &= ~either
    if wrong.any():
        at = np.unravel_index(int(wrong.argmax()), g.shape)
        text = f"{int(wrong.sum())} elements: {y[at]:.6g} where {want[at]:.6g} is right, at ({', '.join(map(str, at))})"
        return np.isfinite(want), _wrong("special", text)
    return np.isfinite(want) & ~either, None


def _errors(y: Array, g: Array, keep: Array, large: Array) -> _Errors:
    off = np.abs(y[keep] - g[keep])
    relative = np.abs(y[large] - g[large]) / np.abs(g[large])
    return _Errors(float(relative.max()), float(relative.mean()), float(np.sqrt((off * off).mean())))


def _ratio(y: Array, golden: Golden, reference: Array, keep: Array, precision: Precision, allowed: Limits,
           figures: dict[str, Figure]) -> Judged:  # fmt: skip
    g = golden.value
    size = float(np.sqrt((g[keep] ** 2).mean())) if keep.any() else 0.0
    large = keep & (np.abs(g) > SMALL * size)
    if not size or not large.any():
        return Judged("", "all zeros", 0.0, figures)
    chip, nears = _errors(y, g, keep, large), [_errors(reference, g, keep, large)]
    if golden.permitted is not None:
        nears.append(_errors(golden.permitted, g, keep, large))
    # What rounding once, to nearest, makes of random numbers; for float32 the order of summation dominates.
    u = precision.unit
    floor = _summed(golden.terms, size) if precision.wide else _Errors(u, 0.36 * u, 0.41 * u * size)
    rows = [
        (name, getattr(chip, name), max(getattr(near, name) for near in (*nears, floor)), getattr(allowed, name))
        for name in ("largest", "mean", "root")
    ]
    few = int(large.sum()) < 1000  # statistics of a few elements scatter
    worst = max(rows, key=lambda r: r[1] / (r[2] * r[3]))
    name, seen, beside, times = worst
    excess = seen / (beside * times * (2.0 if few else 1.0))
    for row in rows:
        figures[f"ratio_{row[0]}"] = row[1] / row[2]
    word = {"largest": "largest relative error", "mean": "mean relative error", "root": "root mean square error"}[name]
    text = f"{word} {seen:.2g}, {seen / beside:.2g}x the reference chip's (at most {times:g}x)"
    return Judged("ratio" if excess > 1 else "", text, excess, figures)


def _summed(terms: int, size: float) -> _Errors:
    """What a sound float32 sum of so many random terms errs by that adds them one after the other: a rounding of each
    partial sum, u sqrt(K)/sqrt(12) of the result's size. The reference chip, which has many partial sums, errs less.
    Measured for K of 64 to 7168: 0.28 to 0.33 u sqrt(K); relative to each element 0.5 on average, mostly 60 and once in
    100 times 93 at most, of 131,000 elements."""
    unit, grown = PRECISIONS["float32"].unit, math.sqrt(terms)
    return _Errors(max(16, 60 * grown) * unit, max(4, 0.5 * grown) * unit, max(4, 0.3 * grown) * unit * size)


def _biased(y: Array, g: Array, reference: Array, keep: Array, precision: Precision, allowed: Limits,
            figures: dict[str, Figure]) -> Judged:  # fmt: skip
    if int(keep.sum()) < BIAS_ELEMENTS:
        return Judged("", "", 0.0, figures)
    mean, error = _along(y, g, keep)
    beside, _ = _along(reference, g, keep)
    z = mean / error if error > 0 else (math.copysign(math.inf, mean) if mean else 0.0)
    room = max((allowed.bias if precision.wide else 0.1) * precision.unit, 2 * abs(beside))
    figures["bias"], figures["bias_z"] = mean, z
    text = f"biased: signed relative error {mean:+.2g} on average (z = {z:.1f}), allowed {room:.2g} or |z| < {Z:g}"
    broken = abs(z) >= Z and abs(mean) > room
    return Judged("bias" if broken else "", text, abs(mean) / room if broken else 0.0, figures)


def _along(y: Array, g: Array, keep: Array) -> tuple[float, float]:
    """Mean signed relative error along g, and its standard error: over rows where these are many, since what belongs
    to a row (a norm's factor) is shared by its elements."""
    size = float(np.abs(g[keep]).mean())
    signed = np.where(keep, (y - g) * np.sign(g) / (np.abs(g) + 1e-3 * size), np.nan)
    rows = signed.reshape(signed.shape[0], -1)
    if len(rows) >= BIAS_ROWS and keep.all():
        each = rows.mean(1)
    else:
        each = signed[keep]
    return float(each.mean()), float(each.std() / math.sqrt(each.size))
