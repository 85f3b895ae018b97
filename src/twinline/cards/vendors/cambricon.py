"""Cambricon: cnmon. A board of two chips shows as two cards. With -j it writes a file instead of printing."""

from __future__ import annotations

from twinline.cards.ask import Ask, empty, table
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, card
from twinline.cards.objects import objects, parsed, text_at

VENDOR, TOOL = "cambricon", "cnmon"
# The keys that gpustack's detector reads (2025-10-14); no recorded file was found. Memory is in MiB there.
PLACES: dict[str, tuple[str, ...]] = {
    "card": ("CardNum",),
    "name": ("ProductName",),
    "uuid": ("UUID",),
    "temperature": ("Temperature", "Chip"),
    "utilisation": ("Utilization", "MLUAverage"),
    "memory_total": ("PhysicalMemUsage", "Total"),
    "memory_used": ("PhysicalMemUsage", "Used"),
}


def info(text: str, command: str) -> Reading:
    return table(VENDOR, TOOL, text, driver=(r"Driver(?: Version:)?\s+v?([0-9][^\s|]*)",))


def written(text: str, command: str) -> Reading:
    found = parsed(text)
    devices = found.get("CnmonInfo") if isinstance(found, dict) else found
    cards = []
    for one in objects(devices):
        texts = {field: text_at(one, *path) for field, path in PLACES.items()}
        fields = {f: Cell(t, "MiB" if f.startswith("memory") else None) for f, t in texts.items() if t is not None}
        if "card" in fields or "uuid" in fields:
            cards.append(card(VENDOR, TOOL, fields))
    return Reading(cards=tuple(cards), findings=() if cards else (empty(VENDOR, TOOL, text),))


ASKS = (Ask("cnmon", info), Ask("cnmon info -e -m -u -j", written, file="cnmon_info.json"))
