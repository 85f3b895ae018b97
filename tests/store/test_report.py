"""Sums of usage: by anything, over any span, and always adding up."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinline.store.database import Database
from twinline.store.fold import fold
from twinline.store.keys import Keys
from twinline.store.report import BY, usage
from twinline.store.usage import Segment, Usage, line_of

DAY = 86_400.0
NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC


@pytest.fixture
def filled(database: Database, tmp_path: Path) -> Database:
    alice = Keys(database).create("alice")[0].id
    moved = [
        Segment("fast", "chip-a", 1, 100, 60, 10, 1.0, 0.1),
        Segment("slow", "chip-b", 2, 0, 0, 30, 3.0, 0.2, waste_tokens=110),
    ]
    records = [
        Usage("1", "r1", alice, "m1", NOON, 4.0, "finished", moved, 1, "CNY"),
        Usage("2", "r2", alice, "m1", NOON + DAY, 1.0, "aborted", [moved[0]], 1, "CNY"),
        Usage("3", "r3", None, "m2", NOON, 1.0, "finished", [Segment("remote", None, 1, 7, 0, 8, 1.0, 0.5)], 2, "USD"),
        Usage("4", "r4", alice, "m1", NOON, 0.0, "refused", []),
        Usage("5", "r5", "key_gone", "m1", NOON, 1.0, "finished", [moved[0]], 1, "CNY"),
    ]
    directory = tmp_path / "journal"
    directory.mkdir()
    (directory / "dead-000001.jsonl").write_bytes(b"".join(map(line_of, records)))
    assert fold(database, directory).records == 5
    return database


def test_by_key_and_model(filled: Database) -> None:
    rows = {(*row.of, row.currency): row for row in usage(filled, ["key", "model"])}
    assert set(rows) == {("alice", "m1", "CNY"), ("alice", "m1", None), ("", "m2", "USD"), ("key_gone", "m1", "CNY")}
    alice = rows["alice", "m1", "CNY"]
    assert (alice.requests, alice.unfinished) == (2, 1)
    assert (alice.prompt_tokens, alice.cached_tokens, alice.completion_tokens) == (200, 120, 50)
    assert (alice.waste_tokens, alice.cost) == (110, 0.4)
    assert (rows["alice", "m1", None].requests, rows["alice", "m1", None].completion_tokens) == (1, 0)


def test_a_moved_request_counts_at_both_lines_and_once_in_all(filled: Database) -> None:
    lines = {row.of[0]: row for row in usage(filled, ["line"])}
    assert {name: row.requests for name, row in lines.items()} == {"": 1, "fast": 3, "slow": 1, "remote": 1}
    totals = {row.currency: row for row in usage(filled)}
    assert {currency: row.requests for currency, row in totals.items()} == {"CNY": 3, "USD": 1, None: 1}
    assert totals["CNY"].waste_tokens == lines["slow"].waste_tokens == 110


def test_every_grouping_adds_up_to_the_total(filled: Database) -> None:
    total = {row.currency: (row.completion_tokens, row.seconds) for row in usage(filled)}
    for by in [[name] for name in BY] + [list(BY)]:
        sums: dict[str | None, tuple[int, float]] = {}
        for row in usage(filled, by):
            tokens, seconds = sums.get(row.currency, (0, 0.0))
            sums[row.currency] = tokens + row.completion_tokens, seconds + row.seconds
        assert sums == total, by


def test_spans_and_one_key(filled: Database) -> None:
    assert [row.of for row in usage(filled, ["day"], since=NOON + 1)] == [("2027-01-16",)]
    assert sum(row.requests for row in usage(filled, until=NOON)) == 0
    assert sum(row.requests for row in usage(filled, since=NOON, until=NOON + DAY)) == 4
    assert sum(row.requests for row in usage(filled, key_id="key_gone")) == 1


def test_money_is_exact(database: Database, tmp_path: Path) -> None:
    """A tenth is no binary fraction; 10,000 of them are a thousand nevertheless."""
    lines = [line_of(Usage(f"{n}", "r", None, "m", NOON, 0.0, "finished", [Segment("l", None, cost=0.1)], 1, "CNY"))
             for n in range(10_000)]  # fmt: skip
    directory = tmp_path / "journal"
    directory.mkdir()
    (directory / "dead-000001.jsonl").write_bytes(b"".join(lines))
    fold(database, directory)
    assert [row.cost for row in usage(database)] == [1000.0]
