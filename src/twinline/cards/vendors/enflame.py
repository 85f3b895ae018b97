"""Enflame: efsmi. Newer drivers say Total Size and Used Size where older ones say Mem Size and Mem Usage."""

from __future__ import annotations

import re

from twinline.cards.ask import Ask, empty, table
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, card
from twinline.cards.headers import bare
from twinline.cards.listings import Entry, blocks, entries, gathered

VENDOR, TOOL = "enflame", "efsmi"
OWN = {"mem": "memory_total", "bus": "", "dev": "", "deviceid": ""}
# In `dmon` the unit is left out; `-q` of the same card prints the same number with MiB.
MONITOR = {"mem": "memory_total MiB"}
_DEVICE = re.compile(r"DEV ID\s+([0-9]{1,4})")


def info(text: str, command: str) -> Reading:
    own = {"mem": "memory_total"}
    return table(VENDOR, TOOL, text, own, (r"Driver Ver(?:sion)?:\s*([^\s|]+)",))


def detail(text: str, command: str) -> Reading:
    """`-q`: a block for each `DEV ID`."""
    cards = []
    for block in blocks(entries(text), lambda entry: _number(entry) is not None):
        number = _number(block[0]) if block else None
        if number is None:
            continue
        fields = gathered(block, OWN)
        fields["card"] = Cell(number)
        parts = {bare(e.key): e.value for e in block if e.key and bare(e.heading) == "pcieinfo"}
        if {"domain", "bus", "dev", "func"} <= parts.keys():
            fields["bus"] = Cell(f"{parts['domain']}:{parts['bus']}:{parts['dev']}.{parts['func']}")
        driver = [e.value for e in block if bare(e.key) == "ver" and bare(e.heading) == "driverinfo"]
        cards.append(card(VENDOR, TOOL, fields, driver[0] if driver else None))
    return Reading(cards=tuple(cards), findings=() if cards else (empty(VENDOR, TOOL, text),))


def _number(entry: Entry) -> str | None:
    found = _DEVICE.fullmatch(entry.line.strip())
    return found[1] if found else None


def monitor(text: str, command: str) -> Reading:
    return table(VENDOR, TOOL, text, MONITOR, blanks=1)


ASKS = (
    Ask("efsmi", info),
    Ask("efsmi -q -d TEMP,MEMORY,USAGE,PCIE", detail),
)
