"""Intel GPUs: xpu-smi with subcommands (Kunlunxin's tool of this name has flags)."""

from __future__ import annotations

from twinline.cards.ask import Ask, empty
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, card
from twinline.cards.objects import objects, parsed, text_at

VENDOR, TOOL = "intel-xpu", "xpu-smi"
PLACES = {"card": "device_id", "name": "device_name", "bus": "pci_bdf_address", "uuid": "uuid"}


def discovery(text: str, command: str) -> Reading:
    found = parsed(text)
    if isinstance(found, dict) and "device_list" in found:
        found = found["device_list"]
    cards = []
    for one in objects(found):
        texts = {field: text_at(one, key) for field, key in PLACES.items()}
        fields = {field: Cell(text) for field, text in texts.items() if text is not None}
        if "bus" in fields or "uuid" in fields:
            cards.append(card(VENDOR, TOOL, fields))
    return Reading(cards=tuple(cards), findings=() if cards else (empty(VENDOR, TOOL, text),))


ASKS = (Ask("xpu-smi discovery -j", discovery),)
