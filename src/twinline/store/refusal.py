"""Why a key's request is not admitted, in words and numbers for its bearer.

Owns the texts and codes. Must not know how it was found out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from twinline.store.keys import Key
from twinline.store.meters import Kind, Meter
from twinline.store.tables import BILLIONTHS


class Refusal(NamedTuple):
    """`code` is for machines, OpenAI's where it has one: `rate_limit_exceeded`, `insufficient_quota`; ours are
    `request_too_large` and `limits_unavailable`. `retry_after_seconds` is None where waiting does not help."""

    reason: str
    code: str
    retry_after_seconds: int | None
    status: int = 429


def refusal_of(key: Key, meter: Meter, need: int, now: float) -> Refusal:
    """The meter has no `need` now."""
    wait = meter.seconds_to_wait(now)
    after = None if wait is None else max(1, math.ceil(wait))
    has = f"The key {key.name} has {amount(meter.kind, meter.limit, key)} {_PER[meter.window]}"
    if need > meter.limit > 0:
        asked = amount(meter.kind, need, key)
        smaller = "lower max_tokens or the prompt, or" if meter.kind != "requests" else "have"
        reason = f"{has}; this request alone may take {asked}. To be served, {smaller} the key's limit raised."
        return Refusal(reason, "request_too_large", None)
    if meter.window == "minute":
        return Refusal(f"{has}, and they are used up. Try again in {after} s.", "rate_limit_exceeded", after)
    if meter.kind == "money_budget":
        return Refusal(f"{has}, and it is spent.{_until(meter, after)}", "insufficient_quota", after)
    return Refusal(f"{has}, and too few are left.{_until(meter, after)}", "insufficient_quota", after)


def unavailable(why: str) -> Refusal:
    return Refusal(f"The key's limits cannot be checked now: {why}.", "limits_unavailable", 1, 503)


def amount(kind: Kind, number: int, key: Key) -> str:
    if kind == "money_budget":
        return f"{number / BILLIONTHS:,.6g} {key.currency}"
    return f"{number:,} {'requests' if kind == 'requests' else 'tokens'}"


def _until(meter: Meter, after: int | None) -> str:
    if after is None:
        return ""
    return f" Try again in {after} s." if meter.others else f" A new month begins in {after / 3600:,.0f} h."


_PER = {"minute": "per minute", "month": "per month", "total": "in all"}
