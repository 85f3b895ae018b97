"""Rounds to a table: medians, and what a gateway adds to the direct way.

Owns columns and their wording. Must not know how a figure was taken.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

COUNTS = ("lost", "doubled", "strange", "unfinished", "errors")  # summed over the rounds, as `failures` is
COLUMNS = (
    "gateway", "request", "requests/s at 1 / 64 / 256 connections", "CPU us/request (64)",
    "added p50 / p99, low load, ms", "few streams: age p50 / p99, ms", "all streams: age p50 / p99, ms",
    "tokens/s", "CPU ms/1,000 tokens", "share of core", "KB/stream", "idle MB", "lost / doubled / unfinished / failed",
)  # fmt: skip


def merged(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every figure; the sum of every count of failures."""
    row = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds if name in one]
        row[name] = sum(values) if name.removeprefix("few_") in (*COUNTS, "failures") else statistics.median(values)
    return row


def table(rows: Mapping[tuple[str, str], Mapping[str, float]], left_out: Mapping[str, str]) -> str:
    """Markdown. `rows` are by (gateway, kind of request); `left_out` says why a gateway has none."""
    direct = rows.get(("direct", "chat"))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for (name, kind), row in rows.items():
        lines.append("| " + " | ".join([name, kind, *_cells(row, direct, alone=name == "direct")]) + " |")
    lines += [f"| {name} | {why} |" + " |" * (len(COLUMNS) - 2) for name, why in left_out.items()]
    return "\n".join(lines)


def _cells(row: Mapping[str, float], direct: Mapping[str, float] | None, *, alone: bool) -> list[str]:
    added = "-"
    if alone:
        added = f"({row['low_p50_ms']:.2f} / {row['low_p99_ms']:.2f} in all)"
    elif direct:
        added = " / ".join(f"{row[name] - direct[name]:.2f}" for name in ("low_p50_ms", "low_p99_ms"))
    own = "-"
    lost, doubled, strange, unfinished, errors = (row[name] + row[f"few_{name}"] for name in COUNTS)
    return [
        " / ".join(f"{row[f'rps_{n}']:,.0f}" for n in (1, 64, 256)),
        own if alone else _number(row.get("cpu_us_per_request")),
        added,
        f"{_number(row['few_age_p50_ms'])} / {_number(row['few_age_p99_ms'])}",
        f"{_number(row['age_p50_ms'])} / {_number(row['age_p99_ms'])}",
        f"{row['few_tokens_per_s']:,.0f} / {row['tokens_per_s']:,.0f}",
        own if alone else _number(row.get("cpu_ms_per_1000_tokens")),
        own if alone else f"{row['core_share']:.0%}",
        own if alone else _number(row["kb_per_stream"]),
        own if alone else f"{row['idle_mb']:.0f}",
        f"{lost:.0f} / {doubled:.0f} / {unfinished:.0f} / {row['failures'] + strange + errors:.0f}",
    ]


def _number(value: float | None) -> str:
    """Two digits that count."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"
