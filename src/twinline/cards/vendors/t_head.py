"""T-Head: ppu-smi, which is asked as nvidia-smi is. No recorded output is public, so a number needs its own unit."""

from __future__ import annotations

from twinline.cards.ask import Ask, listing
from twinline.cards.card import Reading

VENDOR, TOOL = "t-head", "ppu-smi"


def query(text: str, command: str) -> Reading:
    return listing(VENDOR, TOOL, text, command)


ASKS = (Ask("ppu-smi --query-ppu=bus_id,memory.total,power.limit,serial --format=csv,noheader", query),)
