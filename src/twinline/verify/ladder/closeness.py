"""How far two runs of a model are apart: Kullback-Leibler divergence and log-probability error, per position.

Owns the distances and the limits on them. Knows no device.

The rules (reference: ladder level 3): divergence from the golden run, mean and 99.9th percentile, at most twice the
reference chip's; largest log-probability error at most three times, mean error at most 1.5 times. A few roundings are
always allowed, and tails of few positions more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinline.verify.ladder.finding import Figure
from twinline.verify.ladder.subject import Told
from twinline.verify.ladder.trace import ROUNDING

MEAN_KL, TAIL_KL, LARGEST, MEAN = 2.0, 2.0, 3.0, 1.5
TAIL = 0.999
# The tail of a few hundred or thousand positions is one or two of them, where the model itself makes much of an error:
# two sound runs differ in it by more than the rules allow (measured on CPUs over 70 seeds: mean KL 3.1x, p99.9 KL 4.1x,
# largest error 2.6x after the floors below; the mean error, which has no such tail, 1.13x). So below `STEADY` positions
# the limits on tails are wider, and the mean error is the sensitive rule.
STEADY = 10_000
WIDER = {"mean KL": 5.0, "p99.9 KL": 10.0, "largest log-prob error": 3.0}
HEAVY, HEAVY_KL = 20, 100  # what the largest error and the divergence's tail are of their means, as often as not


@dataclass(frozen=True)
class Distance:
    """Per position of all sequences: KL(golden || run) in nats, and the largest log-probability error."""

    kl_N: Tensor
    error_N: Tensor

    @property
    def mean_kl(self) -> float:
        return float(self.kl_N.mean())

    @property
    def tail_kl(self) -> float:
        return float(self.kl_N.quantile(TAIL))

    @property
    def mean(self) -> float:
        return float(self.error_N.mean())

    @property
    def largest(self) -> float:
        return float(self.error_N.max())


def distance(golden: Sequence[Told], run: Sequence[Told]) -> Distance:
    kl = [(g.logprobs_TV.exp() * (g.logprobs_TV - r.logprobs_TV)).sum(-1).clamp_min(0) for g, r in _pairs(golden, run)]
    error = [(g.logprobs_TV - r.logprobs_TV).abs().max(-1).values for g, r in _pairs(golden, run)]
    return Distance(torch.cat(kl), torch.cat(error))


def _pairs(golden: Sequence[Told], run: Sequence[Told]) -> list[tuple[Told, Told]]:
    return list(zip(golden, run, strict=True))


@dataclass(frozen=True)
class Judged:
    passed: bool
    text: str
    figures: dict[str, Figure]
    rule: str


def judge(chip: Distance, reference: Distance, dtype: torch.dtype) -> Judged:
    """The chip's distance from golden beside the reference chip's from the same."""
    count = len(chip.kl_N)
    # A log-probability is known to some tens of roundings of its logits (4 ulp of 32); KL goes with its square.
    floor = 128 * ROUNDING.get(dtype, 2.0**-24)
    steady = count >= STEADY
    rows = [
        (name, seen, near, times * (1.0 if steady else WIDER.get(name, 1.0)))
        for name, seen, near, times in (
            ("mean KL", chip.mean_kl, max(reference.mean_kl, floor**2 / 8), MEAN_KL),
            ("p99.9 KL", chip.tail_kl, max(reference.tail_kl, floor**2, HEAVY_KL * reference.mean_kl), TAIL_KL),
            ("largest log-prob error", chip.largest, max(reference.largest, floor, HEAVY * reference.mean), LARGEST),
            ("mean log-prob error", chip.mean, max(reference.mean, floor / 16), MEAN),
        )
    ]
    over = [(name, seen, near, times) for name, seen, near, times in rows if not seen <= times * near]
    name, seen, near, times = max(over or rows, key=lambda row: _excess(row[1], row[2] * row[3]))
    text = f"{count} positions: {name} {seen:.2e}, {seen / near:.2g}x the reference chip's (at most {times:g}x)"
    figures: dict[str, Figure] = {
        "positions": count,
        "kl_mean_nats": chip.mean_kl,
        "kl_p999_nats": chip.tail_kl,
        "logprob_error_max": chip.largest,
        "logprob_error_mean": chip.mean,
        "reference_kl_mean_nats": reference.mean_kl,
        "reference_kl_p999_nats": reference.tail_kl,
        "reference_logprob_error_max": reference.largest,
        "reference_logprob_error_mean": reference.mean,
    }
    limits = ", ".join(f"{name} <= {times:g}x" for name, _, _, times in rows)
    return Judged(not over, text, figures, f"{limits} the reference chip's")


def _excess(seen: float, allowed: float) -> float:
    return seen / allowed if seen == seen else float("inf")
