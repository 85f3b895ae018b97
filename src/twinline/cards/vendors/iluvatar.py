"""Iluvatar: ixsmi. Units stay in the cells of its lists; on a board of two devices power stands on the second alone."""

from __future__ import annotations

from twinline.cards.ask import Ask, listing, table
from twinline.cards.card import Reading

VENDOR, TOOL = "iluvatar", "ixsmi"


def info(text: str, command: str) -> Reading:
    return table(VENDOR, TOOL, text, driver=(r"Driver Version:\s*([^\s|]+)",))


def query(text: str, command: str) -> Reading:
    return listing(VENDOR, TOOL, text, command)


ASKS = (
    Ask("ixsmi", info),
    Ask(
        "ixsmi --format=csv,noheader --query-gpu=index,name,memory.total,memory.used,utilization.gpu,temperature.gpu",
        query,
    ),
    Ask("ixsmi --query-gpu=gpu_bus_id,memory.total,gpu.power.limit,gpu_serial --format=csv,noheader", query),
)
