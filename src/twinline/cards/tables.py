"""Tables drawn with bars or blanks: rows under headers, headers and records over several lines.

Owns finding the headers and matching each cell against the words over it. A cell reads as a whole, each of its values
in the form that its word asks for, or it does not read at all; so a cut, shifted or damaged row gives nothing rather
than a wrong number. Must not know any tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from twinline.cards.fields import Cell
from twinline.cards.headers import FORMS, TEXT, UNKNOWN, Header, header
from twinline.cards.text import lines

_RULE = re.compile(r"[\s|+*=_-]*")
_DATA = re.compile(r"(?:^|\s)[0-9]|(?:^|\s)N/A|[0-9]\s*(?:%|MiB|W\b|C\b)|[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.")
_NONE = re.compile(r"\bno\b.*process", re.IGNORECASE)
MOST_IN_CELL = 240


class Record(msgspec.Struct, frozen=True):
    """The values of one record, by field; `process` tells a row of a process list from a card."""

    fields: dict[str, Cell]
    process: bool = False


class Table(msgspec.Struct, frozen=True):
    """What a text holds: records, rows that did not read, and rows that stood under no header."""

    records: tuple[Record, ...]
    unread: tuple[str, ...]
    loose: tuple[str, ...]


Words = Sequence[Header]
Template = tuple[tuple[Header, ...], ...]
"""One header line: for each cell the words in it."""


def cells(line: str) -> list[str] | None:
    """The cells of a row; a row that begins with a bar and does not end with one was cut, and its last cell is lost.
    None for a text without bars that is too long to be a row."""
    if "|" not in line:
        return [line] if len(line) <= 2 * MOST_IN_CELL else None
    parts = line.split("|")
    if line.startswith((" " * 8, "\t")) or parts[0].strip():
        return parts if parts[-1].strip() or not parts[0].strip() else parts[:-1]
    return parts[1:-1]


def words(cell: str, blanks: int, own: Mapping[str, str]) -> tuple[Header, ...]:
    pieces = re.split(rf" {{{blanks},}}|(?<=\)) +", cell.strip())  # a bracket with a unit ends a header too
    return tuple(header(piece, own) for piece in pieces if piece.strip("* "))


def headed(row: Sequence[str], blanks: int, own: Mapping[str, str]) -> Template | None:
    """The template that a line of headers gives; None if the line is none."""
    template = tuple(words(cell, blanks, own) for cell in row)
    flat = [word for cell in template for word in cell]
    known = sum(word.known for word in flat)
    fields = sum(word.field is not None for word in flat)
    return template if known >= 2 and fields >= 1 and 2 * known >= len(flat) else None


@lru_cache(maxsize=1024)
def _pattern(names: tuple[tuple[str | None, bool], ...], greedy: bool) -> re.Pattern[str]:
    """The form of a cell with these columns; `greedy` texts take as much as they can, others as little."""
    parts = []
    for at, (field, last) in enumerate(names):
        form = FORMS.get(field or "", TEXT if field else UNKNOWN)
        if greedy:
            form = form.replace("*?", "*")
        parts.append(f"(?P<v{at}>{form})")
        if not last:
            parts.append(r"\s+" if field in FORMS else r"\s{2,}")
    return re.compile("".join(parts), re.IGNORECASE)


def read_cell(text: str, names: tuple[Header, ...]) -> dict[str, Cell] | None:
    """The values in a cell by field; None if the cell does not read under these words."""
    text = text.strip()
    if not names:
        return {}
    if len(text) > MOST_IN_CELL:
        return None
    text = re.sub(r"(?<=\S),\s+", ", ", text)  # `0x74a2,   1017` is one value
    columns = tuple((word.field, at == len(names) - 1) for at, word in enumerate(names))
    found = _pattern(columns, greedy=False).fullmatch(text)
    if found is None:
        return None
    other = _pattern(columns, greedy=True).fullmatch(text)
    if other is None or other.groups() != found.groups():
        return None  # it can be read in two ways
    read = {}
    for at, word in enumerate(names):
        if word.field:
            read[word.field] = Cell(found[f"v{at}"], word.unit)
    return read


def read_row(row: Sequence[str], template: Template) -> tuple[dict[str, Cell], bool]:
    """The values of a row, and whether each of its cells read. None of them if it has other cells than the header.

    A row with one cell missing at its end (it was cut) gives the cells that are whole.
    """
    if len(row) > len(template):
        return {}, False
    values: dict[str, Cell] = {}
    good = len(row) == len(template)
    for cell, names in zip(row, template, strict=False):
        read = read_cell(cell, names)
        if read is None:
            good = False
        elif values.keys() & read.keys():
            good = False  # two columns of one name: neither can be trusted
            values = {field: value for field, value in values.items() if field not in read}
        else:
            values.update(read)
    return values, good


def fits(row: Sequence[str], template: Template) -> bool:
    """Whether the first cell that has a header reads: it tells a record's lines from one another."""
    lead = next((at for at, names in enumerate(template) if names), None)
    return lead is not None and lead < len(row) and read_cell(row[lead], template[lead]) is not None


def tables(text: str, own: Mapping[str, str] = {}, blanks: int = 2) -> Table:
    """All records under all headers of `text`. `own` are the tool's own words; `blanks` divide its header words."""
    return _Reader(own, blanks).read(text)


class _Reader:
    """Goes through the lines once: rules end records, header lines begin tables, rows fill records."""

    def __init__(self, own: Mapping[str, str], blanks: int):
        self.own, self.blanks = own, blanks
        self.templates: list[Template] = []
        self.open = False  # header lines may still follow
        self.rows: list[list[str]] = []
        self.records: list[Record] = []
        self.unread: list[str] = []
        self.loose: list[str] = []

    def read(self, text: str) -> Table:
        for line in lines(text):
            if _RULE.fullmatch(line):
                self._close()
                self.open = False
                if not line.strip() and self.templates and not self._barred():
                    self.templates = []
                continue
            row = cells(line)
            if row is not None and any(cell.strip() for cell in row):
                self._line(line, row)
            elif row is not None and self.rows and not line.rstrip().endswith("|"):
                self._add([])  # cut so short that no cell is whole: the record's next line is not its next row
        self._close()
        return Table(tuple(self.records), tuple(self.unread), tuple(self.loose))

    def _barred(self) -> bool:
        return len(self.templates[0]) > 1

    def _line(self, line: str, row: list[str]) -> None:
        template = None if _DATA.search(line) else headed(row, self.blanks, self.own)
        if self.open and not _DATA.search(line):
            self._continue(row, template)
        elif template is not None:
            self._close()
            self.templates, self.open = [template], True
        elif not self.templates:
            if len(row) > 1 and _DATA.search(line):
                self.loose.append(line)
        else:
            self.open = False
            self._fill(line, row)

    def _continue(self, row: list[str], template: Template | None) -> None:
        """A further line of a header. In a process list it only names the unit of the last column."""
        first = self.templates[0]
        words_here = template or tuple(words(cell, self.blanks, self.own) for cell in row)
        if any(word.field == "pid" for cell in words_here for word in cell):
            self.templates = [words_here]
        elif any(word.field == "pid" for cell in first for word in cell):
            flat = [word for cell in words_here for word in cell]
            if len(flat) == 1 and flat[0].unit and first[-1]:
                *others, last = first[-1]
                self.templates[0] = (*first[:-1], (*others, Header(last.printed, last.field, flat[0].unit, True)))
        elif len(first) > 1 and len(words_here) == len(first):
            self.templates.append(words_here)

    def _fill(self, line: str, row: list[str]) -> None:
        at = self._place(row)
        if at == 0:
            self._close()
        elif at is None or not self.rows:  # it reads under no header line, or its record's first line is lost
            if _DATA.search(line) and not _NONE.search(line) and row[0].strip():
                self.unread.append(line)
            return
        self.rows += [[]] * (at - len(self.rows))  # lines between are lost
        self._add(row)

    def _add(self, row: list[str]) -> None:
        self.rows.append(row)
        if len(self.rows) == len(self.templates):
            self._close()

    def _place(self, row: list[str]) -> int | None:
        """Under which of the header lines a row belongs. The one whose turn it is goes before later ones, and these
        before the beginning of a new record. A row of which one cell does not read belongs where the others do."""
        order = [*range(len(self.rows), len(self.templates)), *range(len(self.rows))]
        if not self.rows:
            order = list(range(len(self.templates)))
        for at in order:
            if read_row(row, self.templates[at])[1]:
                return at
        counts = {at: self._counts(row, at) for at in order if fits(row, self.templates[at])}
        likely = {at: bad for at, (good, bad) in counts.items() if good > 1 and bad < 2}
        best = [at for at, bad in likely.items() if bad == min(likely.values())]
        return best[0] if best and (len(best) == 1 or len(row) == len(self.templates[best[0]])) else None

    def _counts(self, row: list[str], at: int) -> tuple[int, int]:
        """How many cells of a row read under a header line, and how many do not."""
        read = [
            read_cell(cell, names) is not None if names else not cell.strip()
            for cell, names in zip(row, self.templates[at], strict=False)
        ]
        return sum(read), len(read) - sum(read)

    def _close(self) -> None:
        """Ends the record that is open."""
        if not self.rows:
            return
        values: dict[str, Cell] = {}
        for row, template in zip(self.rows, self.templates, strict=False):
            read, good = read_row(row, template) if fits(row, template) else ({}, False)
            if not good and row:
                self.unread.append(" | ".join(cell.strip() for cell in row))
            for field, cell in read.items():
                values.setdefault(field, cell)
        process = any(word.field == "pid" for cell in self.templates[0] for word in cell)
        if values and (not process or "pid" in values):
            self.records.append(Record(values, process))
        self.rows = []


def banner(text: str, patterns: Sequence[str]) -> str | None:
    """What the first of these patterns finds in a text: a driver's version stands above the table, not in it."""
    for pattern in patterns:
        for line in lines(text):
            if found := re.search(pattern, line):
                return found[1]
    return None


def every(records: Sequence[Record], process: bool) -> Iterator[dict[str, Cell]]:
    return (record.fields for record in records if record.process is process)
