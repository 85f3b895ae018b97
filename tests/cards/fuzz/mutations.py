"""Outputs spoilt in the ways in which outputs are spoilt: cut, widened, reordered, translated, doubled, damaged.

Every mutation is `(random, text, command) -> (text, command)`. HARMLESS ones leave a person able to read the same
numbers under the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from tests.cards.recordings import Recording

Mutation = Callable[[Random, str, str], tuple[str, str]]
WORDS = ("Zeta", "Fan9", "Quux Rate", "Neu", "Foo-Bar", "未知", "Säule")
VALUES = ("n7", "77", "Zed", "3.5", "12%", "ok", "99 W", "x-y", "4096MiB", "8 / 9")
TRANSLATED = {
    "Health": "健康状态", "Temp": "Temperatur", "Power": "Leistung", "Memory": "Speicher", "Usage": "Verwendung",
    "Name": "名称", "Total": "总计", "Used": "已用", "Driver": "Treiber", "Bus": "Шина", "Pwr": "Мощн", "Util": "Ausl.",
}  # fmt: skip
GARBAGE = '\x00\x07\x1b[3\ufffd\u202e|:{}",%/-_=+ 0123456789.CWMiB°℃\u0660\uff11\n\r\t'
UNITS = ("MiB", "MB", "GiB", "W", "C", "%", "B", "KiB", "mW", "F", "Mhz")
RULE = re.compile(r"[\s|+*=_-]*")


def _lines(text: str) -> list[str]:
    return text.split("\n")


def cut_line(random: Random, text: str, command: str) -> tuple[str, str]:
    lines = _lines(text)
    at = random.randrange(len(lines))
    lines[at] = lines[at][: random.randint(0, len(lines[at]))]
    return "\n".join(lines), command


def cut_end(random: Random, text: str, command: str) -> tuple[str, str]:
    return text[: random.randint(0, len(text))], command


def drop_line(random: Random, text: str, command: str) -> tuple[str, str]:
    lines = _lines(text)
    del lines[random.randrange(len(lines))]
    return "\n".join(lines), command


def swap_lines(random: Random, text: str, command: str) -> tuple[str, str]:
    lines = _lines(text)
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines), command


def double_block(random: Random, text: str, command: str) -> tuple[str, str]:
    lines = _lines(text)
    start = random.randrange(len(lines))
    end = min(len(lines), start + random.randint(1, 8))
    at = random.randrange(len(lines) + 1)
    return "\n".join(lines[:at] + lines[start:end] + lines[at:]), command


def narrow(random: Random, text: str, command: str) -> tuple[str, str]:
    return re.sub(r"(?<=\S) {2,}(?=\S)", lambda _: " " * random.randint(1, 3), text), command


def widen(random: Random, text: str, command: str) -> tuple[str, str]:
    """More blanks where there are several already; at a line's start they may mean something."""
    return re.sub(r"(?<=\S) {2,}(?=\S)", lambda run: run[0] + " " * random.randint(0, 4), text), command


def columns_at(text: str, command: str) -> str:
    """How this output has columns: bars, commas or none that can be moved."""
    if "--query-" in command or " -Q " in command:
        return "comma"
    return "bar" if sum(line.count("|") > 2 for line in _lines(text)) > 1 else ""


def _bars(lines: list[str]) -> list[tuple[int, list[str], bool]]:
    """The rows of a table with bars: line number, cells, and whether bars close it on both sides."""
    found = []
    for at, line in enumerate(lines):
        if "|" in line and not RULE.fullmatch(line):
            closed = line.lstrip().startswith("|") and not line.startswith(" " * 8)
            cells = line.strip()[1:].removesuffix("|").split("|") if closed else line.split("|")
            found.append((at, cells, closed))
    return found


def _rearranged(
    random: Random, text: str, command: str, change: Callable[[list[str], bool], list[str]]
) -> tuple[str, str]:
    """All rows of the table with the most columns, changed alike; `change` gets (cells, header?)."""
    lines = _lines(text)
    if columns_at(text, command) == "comma":
        head = re.search(r"(?:--query-[a-z]+=|-Q\s+)(\S+)", command)
        assert head
        names = change(head[1].split(","), True)
        rows = [
            ", ".join(change([v.strip() for v in line.split(",")], False)) if line.strip() else line for line in lines
        ]
        return "\n".join(rows), command.replace(head[1], ",".join(names))
    rows_found = _bars(lines)
    most = max((len(cells) for _, cells, _ in rows_found), default=0)
    if most < 3:
        return text, command
    for at, cells, closed in rows_found:
        if len(cells) == most:
            fresh = change(cells, not re.search(r"\d", "".join(cells)))
            lines[at] = f"|{'|'.join(fresh)}|" if closed else "|".join(fresh)
    return "\n".join(lines), command


def insert_column(random: Random, text: str, command: str) -> tuple[str, str]:
    at, word, value = random.randint(0, 3), random.choice(WORDS).replace(" ", ""), random.choice(VALUES)
    where = max(1, at) if columns_at(text, command) == "bar" else at  # a table's first cell tells its rows apart

    around = " " if columns_at(text, command) == "bar" else ""

    def change(cells: list[str], header: bool) -> list[str]:
        return [*cells[:where], f"{around}{word if header else value}{around}", *cells[where:]]

    return _rearranged(random, text, command, change)


def shuffle_columns(random: Random, text: str, command: str) -> tuple[str, str]:
    seed = random.random()
    keep = 1 if columns_at(text, command) == "bar" else 0

    def change(cells: list[str], header: bool) -> list[str]:
        rest = cells[keep:]
        Random(seed).shuffle(rest)
        return cells[:keep] + rest

    return _rearranged(random, text, command, change)


def comma(random: Random, text: str, command: str) -> tuple[str, str]:
    return re.sub(r"(?<=\d)\.(?=\d+(?!\d*[.\d:]))", ",", text), command


def translate(random: Random, text: str, command: str) -> tuple[str, str]:
    for word in random.sample(sorted(TRANSLATED), 3):
        text = text.replace(word, TRANSLATED[word])
    return text, command


def garbage(random: Random, text: str, command: str) -> tuple[str, str]:
    marks = list(text)
    for _ in range(random.randint(1, 12)):
        at = random.randrange(len(marks) + 1)
        mark = random.choice(GARBAGE)
        if random.random() < 0.5 and at < len(marks):
            marks[at] = mark
        else:
            marks.insert(at, mark)
    return "".join(marks), command


def absent(random: Random, text: str, command: str) -> tuple[str, str]:
    numbers = list(re.finditer(r"\d+(?:\.\d+)?", text))
    if not numbers:
        return text, command
    one = random.choice(numbers)
    word = random.choice(("N/A", "-", "[Not Supported]", "ERR!", "", "[N/A]", "Unknown Error"))
    return text[: one.start()] + word + text[one.end() :], command


def other_unit(random: Random, text: str, command: str) -> tuple[str, str]:
    units = list(re.finditer(r"(?<=\d)\s?(?:MiB|MB|W|C|%|B)\b", text))
    if not units:
        return text, command
    one = random.choice(units)
    return text[: one.start()] + random.choice(UNITS) + text[one.end() :], command


def windows(random: Random, text: str, command: str) -> tuple[str, str]:
    return text.replace("\n", "\r\n"), command


def colours(random: Random, text: str, command: str) -> tuple[str, str]:
    return re.sub(r"\b(OK|\d+C|\d+%|Available)", "\x1b[1;32m\\1\x1b[0m", text), command


def blanks(random: Random, text: str, command: str) -> tuple[str, str]:
    """No-break blanks and tabs for blanks."""
    return text.replace("  ", "\u00a0 ") if random.random() < 0.5 else text.replace("  " * 4, "\t"), command


HARMFUL: tuple[Mutation, ...] = (
    cut_line, cut_line, cut_end, drop_line, swap_lines, double_block, narrow, garbage, garbage, absent, other_unit,
    translate, comma,
)  # fmt: skip
HARMLESS: tuple[Mutation, ...] = (widen, insert_column, shuffle_columns, windows, colours, blanks)


def mutated(random: Random, one: Recording) -> tuple[str, str]:
    """One to four mutations of a recording, one after another."""
    text, command = one.text, one.command
    for _ in range(random.randint(1, 4)):
        text, command = random.choice((*HARMFUL, *HARMLESS))(random, text, command)
    return text, command
