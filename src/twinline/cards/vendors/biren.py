"""Biren: brsmi. No recorded output is public: the list is read by the names that were asked for, tables are not read.

`nounits` leaves the unit out and nothing says which it is, so memory stays unknown.
"""

from __future__ import annotations

from twinline.cards.ask import Ask, listing
from twinline.cards.card import Reading

VENDOR, TOOL = "biren", "brsmi"


def query(text: str, command: str) -> Reading:
    return listing(VENDOR, TOOL, text, command)


ASKS = (Ask("brsmi gpu --query-gpu=index,memory.used,memory.free --format=csv,noheader,nounits", query),)
