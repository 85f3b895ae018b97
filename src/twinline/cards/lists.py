"""Comma-separated output: `--query-gpu=index,name,... --format=csv`.

Owns naming its columns, from its first line or, under `noheader`, from the command that was asked. A line with another
count of values than names is not read: a decimal comma would have moved everything after it. Must not know any tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from twinline.cards.fields import Cell
from twinline.cards.headers import bare, header
from twinline.cards.text import lines


class Listed(msgspec.Struct, frozen=True):
    """Records by field, and the lines that did not read."""

    records: tuple[dict[str, Cell], ...]
    unread: tuple[str, ...]


def asked(command: str) -> tuple[str, ...]:
    """The columns that a command asks for."""
    found = re.search(r"(?:--query-[a-z]+=|-Q\s+)(\S+)", command)
    return tuple(found[1].split(",")) if found else ()


def listed(text: str, command: str, own: Mapping[str, str] = {}) -> Listed:
    """The records that `command` printed."""
    columns, rows = asked(command), [line for line in lines(text) if line.strip()]
    if "noheader" not in command:
        at = next((at for at, line in enumerate(rows) if _names(line, columns, own)), len(rows))
        columns = tuple(part.strip() for part in rows[at].split(",")) if at < len(rows) else ()
        rows = rows[at + 1 :]
    if len(set(columns)) < len(columns) or not columns:
        return Listed((), tuple(rows))
    words = [header(column, own) for column in columns]
    records, unread = [], []
    for row in rows:
        values = [value.strip() for value in row.split(",")]
        if len(values) != len(words):
            unread.append(row)
            continue
        records.append({w.field: Cell(v, w.unit) for w, v in zip(words, values, strict=True) if w.field})
    return Listed(tuple(records), tuple(unread))


def _names(line: str, columns: tuple[str, ...], own: Mapping[str, str]) -> bool:
    """Whether a line names columns: those that were asked for or, where none were, at least two known ones."""
    words = [header(part.strip(), own) for part in line.split(",")]
    if columns:
        return {bare(column) for column in columns} <= {bare(word.printed) for word in words}
    return sum(word.field is not None for word in words) > 1
