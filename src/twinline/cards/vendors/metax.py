"""MetaX: mx-smi. A card's `Board` number is its own, `GPU` is what programs count by; GPU-State must be Available."""

from __future__ import annotations

import re

from twinline.cards.ask import Ask, empty, table
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, card
from twinline.cards.headers import BUS
from twinline.cards.matrix import matrix
from twinline.cards.text import lines

VENDOR, TOOL = "metax", "mx-smi"
_LINE = re.compile(rf"GPU#([0-9]{{1,4}})\s+(\S+(?: \S+)*?)\s+({BUS})\s+(\S+(?: \S+)*)")


def info(text: str, command: str) -> Reading:
    own = {"gpu": "logical", "board": "card"}
    return table(VENDOR, TOOL, text, own, (r"Driver Version:\s*([^\s|]+)",))


def names(text: str, command: str) -> Reading:
    """`-L`: a line for each card, which names its own parts: number, name, address, state."""
    found = [match for line in lines(text) if (match := _LINE.fullmatch(line.strip()))]
    cards = tuple(
        card(VENDOR, TOOL, dict(zip(("logical", "name", "bus", "health"), map(Cell, match.groups()), strict=True)))
        for match in found
    )
    return Reading(cards=cards, findings=() if cards else (empty(VENDOR, TOOL, text),))


def topology(text: str, command: str) -> Reading:
    return matrix(VENDOR, TOOL, text)


ASKS = (
    Ask("mx-smi", info),
    Ask("mx-smi -L", names),
    Ask("mx-smi topo -n", topology),
)
