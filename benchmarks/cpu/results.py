"""What was measured: one record a measurement, kept as lines of JSON, and summed up.

Owns records and their medians. Knows no bar.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Key = tuple[str, str, str, str]  # model, precision, scenario, contender


@dataclass(frozen=True)
class Record:
    """`read` is the read bandwidth around it in bytes per second, by as many threads; `bits` those that a value of a
    matrix takes in the engine's memory, scales included; `error` stands for figures."""

    model: str
    precision: str
    scenario: str
    contender: str
    round: int
    threads: int
    read: float
    bits: float
    figures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> Key:
        return self.model, self.precision, self.scenario, self.contender


def append(file: Path, record: Record) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(record)) + "\n")


def load(file: Path) -> list[Record]:
    """A line that was cut off by the end of a run is passed over."""
    found = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            found.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


@dataclass(frozen=True)
class Figure:
    """Median, least, most and count of one figure, over rounds."""

    median: float
    least: float
    most: float
    count: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """All rounds of one contender in one scenario."""

    records: tuple[Record, ...]

    def figure(self, name: str) -> Figure | None:
        return figure(r.figures[name] for r in self.records if name in r.figures)

    def share(self, name: str, bytes_each: float) -> Figure | None:
        """`name` times the bytes that each takes, over the bandwidth beside the same record: the median of shares."""
        return figure(r.figures[name] * bytes_each / r.read for r in self.records if name in r.figures and r.read)

    @property
    def bits(self) -> float:
        return self.records[-1].bits

    @property
    def read(self) -> float:
        return statistics.median([r.read for r in self.records]) if self.records else 0.0

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(r.error for r in self.records if r.error))


def figure(values: Iterable[float]) -> Figure | None:
    known = sorted(values)
    return Figure(statistics.median(known), known[0], known[-1], len(known)) if known else None


def summarised(records: Iterable[Record]) -> dict[Key, Summary]:
    grouped: dict[Key, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.key, []).append(record)
    return {key: Summary(tuple(group)) for key, group in grouped.items()}


def paired(ours: Summary, theirs: Summary, name: str) -> Figure | None:
    """The ratios ours / theirs of the rounds that both ran: what drifts with the machine falls out."""
    other = {r.round: r.figures[name] for r in theirs.records if r.figures.get(name)}
    return figure(r.figures[name] / other[r.round] for r in ours.records if name in r.figures and r.round in other)
