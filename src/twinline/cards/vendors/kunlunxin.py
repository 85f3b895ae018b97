"""Kunlunxin: xpu-smi (Intel's tool of this name is another). `-m` prints fields without names and is not asked."""

from __future__ import annotations

import re

from twinline.cards.ask import Ask, empty, table
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, card
from twinline.cards.headers import BUS, bare
from twinline.cards.listings import blocks, entries, gathered

VENDOR, TOOL = "kunlunxin", "xpu-smi"
OWN = {"xpu": "utilisation", "total": "memory_total", "used": "memory_used"}
HEADINGS = {"utilisation": "Utilization", "memory_total": "Memory Usage", "memory_used": "Memory Usage"}
_DEVICE = re.compile(rf"XPU\s+({BUS})")


def info(text: str, command: str) -> Reading:
    return table(VENDOR, TOOL, text, driver=(r"Driver Version:\s*([^\s|]+)",))


def detail(text: str, command: str) -> Reading:
    """`-q`: a block for each card, begun by `XPU` and its address."""
    driver, cards = None, []
    for block in blocks(entries(text), lambda entry: _DEVICE.fullmatch(entry.line.strip()) is not None):
        start = _DEVICE.fullmatch(block[0].line.strip()) if block else None
        if start is None:
            driver = next((e.value for e in block if bare(e.key) == "driverversion"), None)
            continue
        fields = gathered(block, OWN, HEADINGS)
        fields.setdefault("bus", Cell(start[1]))
        cards.append(card(VENDOR, TOOL, fields, driver))
    return Reading(cards=tuple(cards), findings=() if cards else (empty(VENDOR, TOOL, text),))


ASKS = (Ask("xpu-smi", info), Ask("xpu-smi -q", detail))
