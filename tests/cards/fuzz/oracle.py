"""Whether a number that was reported stands in the text where a person would look for it.

Knows nothing of the readers: it looks for a token of this value, under or behind a word for what it is said to be, with
no other quantity's unit behind it. It uses none of the code under test.
"""

from __future__ import annotations

import re
from functools import lru_cache

from twinline.cards.card import Card, Topology

WORD = {
    "temperature": r"temp",
    "watts": r"power|pwr",
    "watt_limit": r"cap|limit|power|pwr",
    "utilisation": r"util|\buse\b|usage|aicore|[gh][pc]u\s?%|%\s?gpu|dcu|dused|xpu",
    "memory_total": r"mem|hbm|ddr|total|capacity|size",
    "memory_used": r"mem|hbm|ddr|used|usage",
    "card": r"npu|gpu|dev|card|\bid\b|index|xpu|aip|hcu|dcu|board",
    "device": r"chip|device",
    "logical": r"logic|gpu|index|device",
}
BYTES = {"": 0, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
NUMBER = re.compile(r"(?<![\w.,])[-+]?(\d+(?:[.,]\d+)?)(\s?)([A-Za-z%°℃]*)", re.ASCII)
UNITS = frozenset("b bytes kib kb mib mb gib gb tib tb c °c ℃ ° w mw % f mhz k m g".split())
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


@lru_cache(maxsize=4)
def readable(text: str) -> str:
    """What a terminal would show."""
    text = ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\t", " " * 8)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "", text)
    return re.sub(r"[\u00a0\u2000-\u200a\u202f\u3000]", " ", text)


@lru_cache(maxsize=2048)
def tokens(piece: str) -> list[tuple[float, str]]:
    """The numbers in a piece of text with what stands behind them."""
    found = []
    for one in NUMBER.finditer(piece):
        unit = one[3].lower()
        found.append((float(one[1].replace(",", ".")), "" if one[2] and unit not in UNITS else unit))
    return found


@lru_cache(maxsize=4096)
def has_word(word: re.Pattern[str], name: str) -> bool:
    """Whether a name holds the word; damage such as `Tem-p` leaves it readable."""
    return bool(word.search(name) or word.search(re.sub(r"[^A-Za-z%]", "", name)))


def half(field: str, piece: str) -> str:
    """The half of `91W / 400W` and `2MiB(16384MiB)` that a field is: what is used stands first."""
    parts = re.split(r"[/(]", piece)
    if len(parts) != 2 or not all(re.search(r"[0-9]", part) for part in parts):
        return piece
    return parts[1] if field in ("memory_total", "watt_limit") else parts[0]


def is_value(field: str, value: float, piece: str) -> bool:
    """Whether a piece of text holds this value as this kind of quantity."""
    for number, unit in tokens(piece):
        if field.startswith("memory") or field == "process_memory":
            if unit and unit[0] not in BYTES:
                continue
            scales = (BYTES[unit[0]],) if unit else (1, 2**20)
            if any(round(number * scale) == value for scale in scales):
                return True
        elif field == "temperature":
            if number == abs(value) and unit in ("", "c", "°c", "℃", "°"):
                return True
        elif field in ("watts", "watt_limit"):
            if (number == value and unit in ("", "w")) or (unit == "mw" and abs(number / 1000 - value) < 1e-9):
                return True
        elif field == "utilisation":
            if number == value and unit in ("", "%"):
                return True
        elif number == value:
            return True
    return False


@lru_cache(maxsize=2048)
def chunks(cell: str) -> list[str]:
    """A cell in the pieces that a person sees in it: pairs with a slash and numbers with their unit are one."""
    cell = re.sub(r"(?<=[\dA-Za-z])\s*/\s*(?=[\dN])", "/", cell.strip())
    cell = re.sub(r",\s+", ",", cell)
    return re.split(r"\s{2,}", cell)


def cells(line: str) -> list[str]:
    if "|" not in line:
        return [line]
    parts = line.split("|")
    return parts if parts[0].strip() or line.startswith(" " * 8) else parts[1:]


def under_header(text: str, field: str, value: float) -> bool:
    """A token of the value in a line below a header with the word, in the header's cell and, where a person could
    count the pieces in the cell, in the header's piece."""
    word = re.compile(WORD[field], re.IGNORECASE)
    lines = readable(text).split("\n")
    for at, line in enumerate(lines):
        if not has_word(word, line):
            continue
        for cell_at, cell in enumerate(cells(line)):
            names = re.split(r"\s{2,}|(?<=\))\s+", cell.strip())
            for name_at, name in enumerate(names):
                if has_word(word, name) and _below(lines[at + 1 :], cell_at, name_at, len(names), field, value):
                    return True
        loose = line.strip().lstrip("*").split() if "|" not in line else []
        for name_at, name in enumerate(loose):
            if has_word(word, name) and _below(lines[at + 1 :], 0, name_at, len(loose), field, value, single=True):
                return True
    return False


def _below(
    lines: list[str], cell_at: int, name_at: int, names: int, field: str, value: float, single: bool = False
) -> bool:
    for line in lines:
        row = cells(line)
        if cell_at >= len(row):
            continue
        pieces = row[cell_at].split() if single else chunks(row[cell_at])
        looked = half(field, pieces[name_at]) if len(pieces) == names else row[cell_at]
        if is_value(field, value, looked) or _unit_apart(field, value, looked, row[cell_at]):
            return True
    return False


def _unit_apart(field: str, value: float, looked: str, cell: str) -> bool:
    """`826/65536 MiB`: the unit of the first stands behind the second alone."""
    unit = re.search(r"[0-9]\s?([KMGT]i?B)", cell)
    return field == "memory_used" and unit is not None and is_value(field, value, f"{looked.strip()} {unit[1]}")


def behind_key(text: str, field: str, value: float) -> bool:
    """A token of the value behind a key with the word, on one line."""
    word = re.compile(WORD[field], re.IGNORECASE)
    for line in readable(text).split("\n"):
        key, colon, rest = line.rpartition(": ")
        if colon and has_word(word, key) and is_value(field, value, rest):
            return True
    return False


JSON_WORD = {
    **WORD,
    "watts": r"power",
    "watt_limit": r"power",
    "memory_total": r"mem|total|size|value",
    "memory_used": r"mem|used",
    "utilisation": r"util|use",
    "card": r"card|gpu|device_id|index",
    "logical": r"index",
    "device": r"device_id|chip",
}


def in_object(text: str, field: str, value: float) -> bool:
    """A token of the value behind a key with the word; `card0` is a key that holds its number itself."""
    word = re.compile(JSON_WORD[field], re.IGNORECASE)
    shown = readable(text)
    for one in re.finditer(r'"([^"]*)"\s*:\s*(?:"([^"]*)"|([-+.\d]+))', shown):
        if has_word(word, one[1]) and is_value(field, value, one[2] if one[2] is not None else one[3]):
            return True
    return field == "card" and re.search(rf'"card0*{int(value)}"', shown) is not None


def in_list(text: str, command: str, field: str, value: float) -> bool:
    """A token of the value in the column that the command names."""
    head = re.search(r"(?:--query-[a-z]+=|-Q\s+)(\S+)", command)
    word = re.compile(WORD[field].replace(r"\bid\b", "id"), re.IGNORECASE)
    for at, name in enumerate(head[1].split(",") if head else ()):
        for line in readable(text).split("\n"):
            parts = line.split(",")
            if word.search(name) and at < len(parts) and is_value(field, value, parts[at]):
                return True
    return False


@lru_cache(maxsize=512)
def stands(text: str, command: str, field: str, value: float) -> bool:
    """Whether any way of reading finds the value as this field."""
    if "--query-" in command or " -Q " in command:
        return in_list(text, command, field, value)
    if field == "logical" and re.search(rf"GPU#0*{int(value)}\b", readable(text)):
        return True
    if field == "card" and re.search(rf"(?:GPU\[|DEV ID\s+)0*{int(value)}\b", readable(text)):
        return True
    ways = (in_object, behind_key, under_header) if '":' in text else (under_header, behind_key)
    return any(way(text, field, value) for way in ways)


def invented(text: str, command: str, card: Card) -> list[str]:
    """The numbers and names of a card that do not stand in the text where they should."""
    out = []
    for field in WORD:
        value = getattr(card, field)
        if value is not None and not stands(text, command, field, value):
            out.append(f"{field} {value}")
    shown = " ".join(readable(text).split())
    for field in ("uuid", "serial", "name", "driver"):
        value = getattr(card, field)
        if value is not None and value.removesuffix("...") not in shown:
            out.append(f"{field} {value}")
    if card.bus is not None and not _address(card.bus, readable(text)):
        out.append(f"bus {card.bus}")
    if card.health != "unknown" and card.reason.rsplit(" ", 1)[-1] not in shown:
        out.append(f"health {card.reason}")
    for process in card.processes or ():
        numbers = {number for number, _ in tokens(shown)}
        if process.pid not in numbers:
            out.append(f"pid {process.pid}")
        if process.memory is not None and not is_value("process_memory", process.memory, shown):
            out.append(f"process memory {process.memory}")
    return out


def _address(bus: str, text: str) -> bool:
    domain, number, device = bus.split(":")
    tail = rf"0*{domain.lstrip('0') or '0'}?:?{number}:{device}(?![0-9a-f])"
    if re.search(tail, " ".join(text.split()), re.IGNORECASE):
        return True
    keyed: dict[str, list[str]] = {}
    for line in text.split("\n"):
        key, _, value = line.rpartition(": ")
        keyed.setdefault(re.sub(r"[^a-z]", "", key.lower()), []).append(value.strip())
    parts = (("Bus", number), ("Dev", device.split(".")[0]), ("Func", device.split(".")[1]))
    return all(any(value.lower() == part for value in keyed.get(key.lower(), ())) for key, part in parts)


def invented_links(text: str, topology: Topology) -> list[str]:
    """The links of a topology whose word does not stand in the row of one end, in the column of the other."""
    lines = [line.split() for line in readable(text).split("\n")]
    out = []
    for link in topology.links:
        rows = [row for row in lines if row and row[0] == link.start]
        heads = [row.index(link.end) + 1 for row in lines if link.end in row and link.start in row and "X" not in row]
        if not any(at < len(row) and row[at] == link.printed for row in rows for at in heads):
            out.append(f"{link.start}-{link.end} {link.printed}")
    return out
