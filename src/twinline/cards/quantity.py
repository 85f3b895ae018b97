"""Numbers with units as tools print them: `91W`, `31058MiB`, `34℃`, `0.0 %`, `38,5`.

Owns their reading: a text is a quantity as a whole or not at all. Must not know which column it stood in.
"""

from __future__ import annotations

import re

NUMBER = r"[+-]?[0-9]+(?:[.,][0-9]+)?"
_NUMBER = re.compile(NUMBER)
_QUANTITY = re.compile(rf"({NUMBER})\s*([%°℃A-Za-z]{{0,5}})\.?")

# Makers' tools write MB and mean 2**20: a card of 64 GiB is 65536 "MB" in them.
_BYTES = {"b": 1, "bytes": 1, "byte": 1} | {
    unit: 2**power
    for power, letter in ((10, "k"), (20, "m"), (30, "g"), (40, "t"))
    for unit in (letter, f"{letter}b", f"{letter}ib")
}
_WATTS = {"w": 1.0, "mw": 0.001}
_CELSIUS = {"c", "°c", "℃", "°"}
MOST_BYTES = 1 << 50
MOST_WATTS = 20_000.0
COLDEST, HOTTEST = -60.0, 250.0


def number(text: str) -> float | None:
    """`65.23`, `65,23`; None for what is no number, and for `1,024`, which is one in some countries and a thousand
    times that in others."""
    text = text.strip()
    if not _NUMBER.fullmatch(text) or len(text) > 24:
        return None
    whole, comma, part = text.partition(",")
    if comma and len(part) == 3:
        return None
    return float(f"{whole}.{part}" if comma else text)


def split(text: str) -> tuple[float, str] | None:
    """A number and its unit in lower case."""
    if found := _QUANTITY.fullmatch(text.strip()):
        value = number(found[1])
        return None if value is None else (value, found[2].lower())
    return None


def whole(text: str) -> int | None:
    """A count or an index: digits alone."""
    text = text.strip()
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def memory(text: str, unit: str | None = None) -> int | None:
    """Bytes. `unit` is the header's; the cell's own goes before it; without either there is no answer."""
    found = split(text)
    if found is None:
        return None
    value, own = found
    scale = _BYTES.get(own or (unit or "").lower())
    if scale is None or not 0 <= value * scale <= MOST_BYTES:
        return None
    return round(value * scale)


def watts(text: str, unit: str | None = None) -> float | None:
    found = split(text)
    if found is None:
        return None
    value, own = found
    scale = _WATTS.get(own or (unit or "w").lower())
    return value * scale if scale is not None and 0 <= value * scale <= MOST_WATTS else None


def celsius(text: str, unit: str | None = None) -> float | None:
    found = split(text)
    if found is None:
        return None
    value, own = found
    return value if (own or (unit or "c").lower()) in _CELSIUS and COLDEST <= value <= HOTTEST else None


def percent(text: str, unit: str | None = None) -> float | None:
    found = split(text)
    if found is None:
        return None
    value, own = found
    return value if (own or unit or "%") == "%" and 0 <= value <= 100 else None
