"""How facts with their origin look in a terminal: numbers with a mark, columns, wrapped notes, numbered sources.

Owns looks alone. Must not know which facts there are.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence

from twinline.cli.table import aligned
from twinline.cli.terminal import width
from twinline.facts.chips import Chip, Precision
from twinline.facts.evidence import Figure, How

MARKS: dict[How, str] = {"measured": "m", "vendor": "v", "paper": "p", "press": "n", "estimate": "e", "unknown": ""}
LEGEND = "m measured   v vendor   p paper   n press and third parties   e estimate   ? not found   * sources disagree"


def number(value: float) -> str:
    """`989`, `1,307.4`, `362.05`."""
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def marked(figure: Figure) -> str:
    """`989 v`: the number and how it is known; `?` for what is not known."""
    if figure.value is None:
        return "?"
    return f"{number(figure.value)} {MARKS[figure.how]}{'*' if figure.disputed else ''}"


def both(declared: Figure, measured: Figure | None) -> str:
    """What is declared, and beside it what somebody measured: `1,800 n, 1,390.5 m*`."""
    known = [f for f in (declared, measured) if f is not None and f.known]
    if len(known) == 2 and known[0].how == "measured":
        known = known[1:]
    return ", ".join(marked(f) for f in known) or "?"


def computing(chip: Chip, precision: Precision) -> str:
    """The rates in a precision, declared and measured; without one, whether the chip computes in it."""
    support, peak, rate = chip.precisions[precision], chip.peaks[precision], chip.rate(precision)
    rates = both(peak, rate if rate is not peak else None)
    if support.answer == "other-encoding":
        return "other" if rates == "?" else f"{rates} other"
    if rates != "?":
        return rates
    return "?" if support.answer == "unknown" else f"{support.answer} {MARKS[support.evidence]}"


def columns(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), indent: str = "  ") -> list[str]:
    """Rows of equal length, aligned; columns in `left` to the left, the others to the right."""
    return aligned(rows, indent, left).split("\n")


def wrapped(label: str, text: str, indent: int) -> Iterator[str]:
    """`label`, then `text` from column `indent` on, over as many lines as it needs."""
    start = f"{label:<{indent}}" if len(label) < indent else f"{label}  "
    yield from textwrap.wrap(
        text,
        width(),
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    ) or [start.rstrip()]


class Sources:
    """Numbers for sources, in the order in which they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cite(self, source: str) -> str:
        """`[2]`, or `[1 3]` for several joined by semicolons."""
        numbers = [self._numbers.setdefault(one, len(self._numbers) + 1) for one in source.split("; ")]
        return f"[{' '.join(str(n) for n in numbers)}]"

    def lines(self) -> Iterator[str]:
        for source, at in self._numbers.items():
            yield from wrapped(f"  [{at}]", source, 7)
