"""Moore Threads: mthreads-gmi. `Mem` is used memory with the total in brackets; power stands only under -q, of which
no recorded output was found."""

from __future__ import annotations

from twinline.cards.ask import Ask, table
from twinline.cards.card import Reading

VENDOR, TOOL = "moorethreads", "mthreads-gmi"


def info(text: str, command: str) -> Reading:
    return table(VENDOR, TOOL, text, {"mem": "memory_pair"}, (r"Driver Version:\s*([^\s|]+)",))


ASKS = (Ask("mthreads-gmi", info),)
