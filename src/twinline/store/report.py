"""Sums of what was used, by key, model, line, chip and day.

Owns the questions put to the usage tables. Must not know how the answers are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, case, func, select

from twinline.store import tables
from twinline.store.database import Database

_requests, _segments, _keys = tables.requests.c, tables.segments.c, tables.keys.c

# what can be grouped by, and the columns it takes
BY: dict[str, ColumnElement[Any]] = {
    "key": func.coalesce(_keys.name, _requests.key_id, ""),
    "model": _requests.model,
    "line": func.coalesce(_segments.line, ""),
    "chip": func.coalesce(_segments.chip, ""),
    "day": _requests.day,
    "status": _requests.status,
}


class Sum(msgspec.Struct, frozen=True, kw_only=True):
    """One group's sums. `of` names the group in the order that was asked for; empty names are requests without one.

    `requests` are those that have any part in the group: one that moved counts at each of its lines, and once in a sum
    over lines. `cached_tokens` are part of `prompt_tokens`; `waste_tokens` and nothing else are beside what tenants are
    counted for. `seconds` on lines. `cost` in `currency`; groups are apart by currency.
    """

    of: tuple[str, ...]
    currency: str | None
    requests: int
    unfinished: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    waste_tokens: int
    seconds: float
    cost: float


def usage(
    database: Database, by: Sequence[str] = (), *, since: float | None = None, until: float | None = None,
    key_id: str | None = None,
) -> list[Sum]:  # fmt: skip
    """Sums of requests that started in [since, until) (unix seconds), grouped and ordered by `by`, names in `BY`.

    Without `by`: the total, one row a currency. Blocks.
    """
    groups = [BY[name].label(f"by_{name}") for name in by]
    # Two keys may have had the same name, one after the other.
    apart = [_requests.currency, *([_requests.key_id] if "key" in by else [])]
    where: list[ColumnElement[bool]] = []
    if since is not None:
        where.append(_requests.started >= since)
    if until is not None:
        where.append(_requests.started < until)
    if key_id is not None:
        where.append(_requests.key_id == key_id)
    unfinished = case((_requests.status != "finished", _requests.uid))
    query = (
        select(
            *groups,
            _requests.currency,
            func.count(_requests.uid.distinct()).label("requests"),
            func.count(unfinished.distinct()).label("unfinished"),
            *(
                func.coalesce(func.sum(_segments[name]), 0).label(name)
                for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "waste_tokens", "seconds", "cost")
            ),
        )
        .select_from(
            tables.requests.outerjoin(tables.segments, _segments.uid == _requests.uid).outerjoin(
                tables.keys, _keys.id == _requests.key_id
            )
        )
        .where(and_(True, *where))
        .group_by(*groups, *apart)
        .order_by(*groups, *apart)
    )
    with database.reading() as connection:
        rows = connection.execute(query).all()
    return [
        Sum(
            of=tuple(str(getattr(row, f"by_{name}")) for name in by),
            currency=row.currency,
            requests=row.requests,
            unfinished=row.unfinished,
            prompt_tokens=int(row.prompt_tokens),
            cached_tokens=int(row.cached_tokens),
            completion_tokens=int(row.completion_tokens),
            waste_tokens=int(row.waste_tokens),
            seconds=float(row.seconds),
            cost=int(row.cost) / tables.BILLIONTHS,
        )
        for row in rows
    ]
