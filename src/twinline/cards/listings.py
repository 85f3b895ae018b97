"""Listings: `key : value` under headings, as `-q` and `-t` of many tools print them.

Owns taking them apart. Must not know any tool. A heading holds until the next; indentation is not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from twinline.cards.fields import Cell
from twinline.cards.headers import bare, header
from twinline.cards.text import lines

_PAIR = re.compile(r"\s*([^:|]{1,60}?)\s*:(?:\s+(.*))?$")


class Entry(msgspec.Struct, frozen=True):
    """A line of a listing. `key` and `heading` as printed; a heading has an empty key."""

    heading: str
    key: str
    value: str
    line: str


def entries(text: str) -> Iterator[Entry]:
    """The lines of a listing that say something, each with the heading above it."""
    heading = ""
    for line in lines(text):
        if not line.strip() or set(line.strip()) <= set("=+-_|"):
            continue
        found = _PAIR.fullmatch(line)
        if found and found[2] and found[2].strip():
            yield Entry(heading, found[1].strip(), found[2].strip(), line)
        else:
            heading = line.strip().rstrip(":").strip()
            yield Entry(heading, "", "", line)


def gathered(found: Iterable[Entry], own: Mapping[str, str] = {}, headings: Mapping[str, str] = {}) -> dict[str, Cell]:
    """The values by field. `headings` name the one heading (without case and punctuation) under which a field counts:
    `Total` is of the memory only under `Memory Usage`. Two values of one field that differ are both left out."""
    values: dict[str, Cell] = {}
    torn = set()
    for entry in found:
        if not entry.key:
            continue
        word = header(entry.key, own)
        if word.field is None or bare(headings.get(word.field, entry.heading)) != bare(entry.heading):
            continue
        cell = Cell(entry.value, word.unit)
        if values.setdefault(word.field, cell) != cell:
            torn.add(word.field)
    return {field: cell for field, cell in values.items() if field not in torn}


def blocks(found: Iterable[Entry], opens: Callable[[Entry], bool]) -> Iterator[list[Entry]]:
    """The entries in blocks, each begun by an entry that `opens`; what stands before the first comes first."""
    block: list[Entry] = []
    for entry in found:
        if opens(entry):
            yield block
            block = []
        block.append(entry)
    yield block
