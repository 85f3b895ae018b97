"""From texts under known words to a card: the one place where text becomes numbers.

Owns that step. Must not know tables, listings or tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from twinline.cards import quantity
from twinline.cards.card import Card, Condition
from twinline.cards.headers import BUS
from twinline.cards.text import clipped, said
from twinline.facts.chips import load


class Cell(msgspec.Struct, frozen=True):
    """A value as printed, and the unit that its header names."""

    text: str
    unit: str | None = None


Fields = Mapping[str, Cell]

_GOOD = frozenset("ok true healthy health available normal good".split())
_BAD = frozenset(
    "warning alarm critical nok false unhealthy unavailable error fault faulty failed failure lost offline bad "
    "abnormal dead".split()
)


def condition(word: str | None, tool: str, what: str = "health") -> tuple[Condition, str]:
    """What a tool's word for a card's state means, and why we say so."""
    if (stated := said(word)) is None:
        return "unknown", f"{tool} does not say"
    state = stated.casefold()
    why = f"{tool}: {what} {clipped(stated, 60)}"
    first = re.split(r"[\s,;:]", state)[0]
    if state in _GOOD:
        return "ok", why
    return ("bad", why) if first in _BAD else ("unknown", why)


def address(text: str | None) -> str | None:
    """A PCI address in one form, `0000:5a:00.0`; None if it is none."""
    found = re.match(rf"\s*({BUS})(?=\s|$)", text or "")
    if not found:
        return None
    *domain, bus, device = found[1].lower().split(":")
    first = domain[0].lstrip("0") if domain else ""
    return f"{first.rjust(4, '0')}:{bus}:{device}"


def pair(text: str) -> tuple[str, str] | None:
    """`91W / 400W` and `2MiB(16384MiB)` as used and total. A unit on the second alone holds for both."""
    used, slash, total = text.partition("/")
    if not slash:
        used, bracket, total = text.partition("(")
        if not bracket or not total.endswith(")"):
            return None
        total = total[:-1]
    used, total = used.strip(), total.strip()
    if re.fullmatch(quantity.NUMBER, used) and (unit := re.search(r"[A-Za-z]+$", total)):
        used += unit[0]
    return used, total


@lru_cache(maxsize=256)
def identity(vendor: str, name: str | None) -> str | None:
    """The catalog's id of what a tool calls `name`."""
    chip = load().printed(vendor, name) if name else None
    return chip.id if chip else None


def card(vendor: str, tool: str, fields: Fields, driver: str | None = None) -> Card:
    """The card that these fields speak of. What is not there or does not read as what it should be stays None."""
    version = said(driver)
    out: dict[str, Any] = {"driver": clipped(version, 80) if version else None}

    def put(name: str, value: Any) -> None:
        if value is not None:
            out[name] = value

    for field, cell in fields.items():
        text = said(cell.text)
        if text is None:
            continue
        match field:
            case "card" | "device" | "logical":
                put(field, quantity.whole(text))
            case "name" | "serial" | "driver":
                put(field, clipped(text, 80))
            case "uuid":
                put(field, " ".join(text.split())[:80])
            case "bus":
                put(field, address(text))
            case "watts" | "watt_limit":
                put(field, quantity.watts(text, cell.unit))
            case "temperature":
                put(field, quantity.celsius(text, cell.unit))
            case "utilisation":
                put(field, quantity.percent(text, cell.unit))
            case "memory_total" | "memory_used":
                put(field, quantity.memory(text, cell.unit))
            case "watts_pair" if both := pair(text):
                put("watts", quantity.watts(both[0], cell.unit))
                put("watt_limit", quantity.watts(both[1], cell.unit))
            case "memory_pair" if both := pair(text):
                put("memory_used", quantity.memory(both[0], cell.unit))
                put("memory_total", quantity.memory(both[1], cell.unit))
            case "health":
                out["health"], out["reason"] = condition(text, tool)
            case _:
                pass
    return Card(vendor=vendor, tool=tool, chip=identity(vendor, out.get("name")), **out)
