"""What `rocm-smi` and the tools made from it print: JSON by card, lines by card, and a table.

Owns their common forms; AMD's and Hygon's files say whose they are. Must not know who asks.
"""

from __future__ import annotations

import re

from twinline.cards.ask import empty, table
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, Fields, card
from twinline.cards.headers import header
from twinline.cards.objects import parsed
from twinline.cards.text import lines, said

OWN = {
    "temperaturesensorjunction": "temperature",
    "temperaturesensoredge": "temperature_edge",
    "hotspot": "temperature",
}
_CARD = re.compile(r"card([0-9]{1,4})", re.IGNORECASE)
_LINE = re.compile(r"(?:GPU|HCU|DCU)\[([0-9]{1,4})\]\s*:\s*(.{1,60}?)\s*:\s+(\S.*)")


def _junction_first(fields: Fields) -> Fields:
    """The junction is what limits a chip; the edge counts where no junction is shown."""
    out = dict(fields)
    edge = out.pop("temperature_edge", None)
    if edge is not None:
        out.setdefault("temperature", edge)
    return out


def by_card(vendor: str, tool: str, text: str) -> Reading:
    """`{"card0": {...}}` with whatever text stands around it, or `GPU[0] : key : value`, or the concise table."""
    found = parsed(text)
    if isinstance(found, dict):
        cards = []
        for key, values in found.items():
            number = _CARD.fullmatch(key)
            if number and isinstance(values, dict):
                fields: dict[str, Cell] = {"card": Cell(number[1])}
                for name, value in values.items():
                    word = header(name, OWN)
                    if isinstance(value, str) and word.field and said(value) is not None:
                        fields.setdefault(word.field, Cell(value, word.unit))
                cards.append(card(vendor, tool, _junction_first(fields)))
        return Reading(cards=tuple(cards), findings=() if cards else (empty(vendor, tool, text),))
    if any(_LINE.match(line) for line in lines(text)):
        return _by_line(vendor, tool, text)
    return table(vendor, tool, text)


def _by_line(vendor: str, tool: str, text: str) -> Reading:
    found: dict[str, dict[str, Cell]] = {}
    torn = set()
    for line in lines(text):
        if entry := _LINE.match(line):
            fields = found.setdefault(entry[1], {"card": Cell(entry[1])})
            word = header(entry[2], OWN)
            if word.field and word.field != "card":
                cell = Cell(entry[3], word.unit)
                if fields.setdefault(word.field, cell) != cell:
                    torn.add((entry[1], word.field))
    for number, field in torn:
        del found[number][field]
    return Reading(cards=tuple(card(vendor, tool, _junction_first(fields)) for fields in found.values()))
