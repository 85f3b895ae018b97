"""Intel Gaudi: hl-smi. On some hosts it needs root for its figures, and prints N/A without."""

from __future__ import annotations

from twinline.cards.ask import Ask, listing, table
from twinline.cards.card import Reading

VENDOR, TOOL = "intel-gaudi", "hl-smi"
DRIVER = (r"(?<!Nic )Driver Version:\s*([^\s|]+)",)


def info(text: str, command: str) -> Reading:
    return table(VENDOR, TOOL, text, driver=DRIVER)


def query(text: str, command: str) -> Reading:
    return listing(VENDOR, TOOL, text, command, {"moduleid": ""})


ASKS = (
    Ask("hl-smi", info),
    Ask(
        "hl-smi -Q index,module_id,uuid,name,memory.total,memory.used,utilization.aip,temperature.aip,power.draw "
        "-f csv,noheader",
        query,
    ),
)
