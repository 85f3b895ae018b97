"""Sums up a load run: latencies, throughput, errors and goodput.

Owns the definitions of the reported numbers. Knows answers only: no network, no printing. Units are in the names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from twinline.verify.load import INTERRUPTED, Answer


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of a set of milliseconds; `count` values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Failure:
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a good answer keeps to, in milliseconds; None sets no limit."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.itl_ms is not None

    def met(self, answer: Answer) -> bool:
        """Whole, first token in time, and its mean time per later token in time."""
        if answer.error:
            return False
        first, later = first_token_ms(answer), per_token_ms(answer)
        in_time = self.ttft_ms is None or first <= self.ttft_ms
        return in_time and (self.itl_ms is None or later is None or later <= self.itl_ms)


@dataclass(frozen=True, slots=True)
class Report:
    """One run. Latencies and token rates are of whole answers only; failed requests are under `errors`.

    `ttft_ms`: from when the request was due (open loop) or sent (closed loop) to the first piece of the answer.
    `inter_token_ms`: every gap between successive pieces. `per_token_ms`: one value an answer, (last - first piece) /
    (tokens - 1). `end_to_end_ms`: to the end of the stream. `send_lag_ms`: how late this program itself was in sending.
    `token_counts`: `usage` (the server's), `chunks` (pieces seen, a lower bound), or `mixed`.
    """

    seconds: float
    requests: int
    completed: int
    errors: dict[str, Failure]
    token_counts: str
    input_tokens: int | None
    cached_tokens: int
    output_tokens: int
    requests_per_s: float
    input_tokens_per_s: float | None
    output_tokens_per_s: float
    ttft_ms: Spread | None
    inter_token_ms: Spread | None
    per_token_ms: Spread | None
    end_to_end_ms: Spread | None
    send_lag_ms: Spread | None
    goodput_requests_per_s: float | None
    goodput_share: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run's work cost at a price an hour for all that served, the input's work included. None: there was none of
    it, or no limits were set."""

    price_per_hour: float
    currency: str
    per_million_output_tokens: float | None
    per_thousand_good_requests: float | None


def cost(report: Report, price_per_hour: float, currency: str) -> Cost:
    a_second, good = price_per_hour / 3600, report.goodput_requests_per_s
    return Cost(
        price_per_hour,
        currency,
        a_second / report.output_tokens_per_s * 1e6 if report.output_tokens_per_s else None,
        a_second / good * 1e3 if good else None,
    )


def first_token_ms(answer: Answer) -> float:
    return (answer.chunks[0] - answer.due) * 1e3


def per_token_ms(answer: Answer) -> float | None:
    """None for an answer of one token."""
    if answer.output_tokens < 2 or len(answer.chunks) < 2:
        return None
    return (answer.chunks[-1] - answer.chunks[0]) * 1e3 / (answer.output_tokens - 1)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest of `ordered`, ascending and not empty."""
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Iterable[float | None]) -> Spread | None:
    ordered = sorted(v for v in values if v is not None)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Spread(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99)


def failures(answers: Sequence[Answer]) -> dict[str, Failure]:
    """By kind, the most frequent first, each with the first example's detail."""
    found: dict[str, Failure] = {}
    for answer in answers:
        if answer.error:
            before = found.get(answer.error, Failure(0, answer.detail))
            found[answer.error] = Failure(before.count + 1, before.example)
    return dict(sorted(found.items(), key=lambda item: -item[1].count))


def counted_from(whole: Sequence[Answer]) -> str:
    sources = {answer.counted for answer in whole}
    return "mixed" if len(sources) > 1 else sources.pop() if sources else "usage"


def summarise(answers: Sequence[Answer], limits: Limits) -> Report:
    """The report of a run; rates are per second from the start of the load to the last answer's end."""
    whole = [answer for answer in answers if answer.error is None]
    seconds = max((answer.ended for answer in answers), default=0.0)
    rate = 1 / seconds if seconds > 0 else 0.0
    inputs = [answer.input_tokens for answer in whole if answer.input_tokens is not None]
    input_tokens = sum(inputs) if whole and len(inputs) == len(whole) else None
    output_tokens = sum(answer.output_tokens for answer in whole)
    good = sum(limits.met(answer) for answer in answers)
    due = [answer for answer in answers if answer.error != INTERRUPTED or answer.sent < answer.ended]
    return Report(
        seconds=seconds,
        requests=len(answers),
        completed=len(whole),
        errors=failures(answers),
        token_counts=counted_from(whole),
        input_tokens=input_tokens,
        cached_tokens=sum(answer.cached_tokens for answer in whole),
        output_tokens=output_tokens,
        requests_per_s=len(whole) * rate,
        input_tokens_per_s=None if input_tokens is None else input_tokens * rate,
        output_tokens_per_s=output_tokens * rate,
        ttft_ms=spread(first_token_ms(a) for a in whole),
        inter_token_ms=spread((b - a) * 1e3 for answer in whole for a, b in pairwise(answer.chunks)),
        per_token_ms=spread(per_token_ms(a) for a in whole),
        end_to_end_ms=spread((a.ended - a.due) * 1e3 for a in whole),
        send_lag_ms=spread((a.sent - a.due) * 1e3 for a in due if a.error != "not sent"),
        goodput_requests_per_s=good * rate if limits else None,
        goodput_share=good / len(due) if limits and due else None,
    )
