"""On which chips a model fits: for each chip of the catalog the smallest number of cards.

Owns the choice of precision for each chip and the table. Must not know any sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from twinline.cli.chips_text import LEGEND, MARKS, columns, marked
from twinline.cli.fit_text import Question, gigabytes, headline
from twinline.facts.chips import Catalog, Chip
from twinline.facts.fit import Fit, fit
from twinline.facts.fit_changes import least_cards, other_forms
from twinline.facts.forms import Form
from twinline.facts.suits import suits


@dataclass(frozen=True)
class Row:
    """A chip, and the sum for the fewest cards; `why` there is none."""

    chip: Chip
    fit: Fit | None
    why: str = ""


def least(question: Question, catalog: Catalog, cards: int | None) -> list[Row]:
    """A row for each chip; of `cards` cards if that is given."""
    return [_row(question, chip, cards) for chip in catalog.chips.values()]


SMALL = ("w4a8", "int4", "fp4")  # taken only where nothing larger fits


def _row(question: Question, chip: Chip, cards: int | None) -> Row:
    """The published precision if the chip is known to run it; else, of those that it is known to run, the one that
    takes fewest cards, 8 bits or more before 4; else the published one, marked, if nothing says that it does not."""
    anatomy, want = question.anatomy, question.want
    if chip.memory_bytes().value is None:
        return Row(chip, None, "memory not known")
    said = suits(chip, want.form).answer
    forms = [want.form] if said != "no" else []
    if question.as_published and said != "yes":
        forms += other_forms(anatomy, chip, want.form)
    if not forms:
        return Row(chip, None, f"does not run {want.form.name}" + ("" if question.as_published else " weights"))
    found = [one for form in forms if (one := _fewest(question, chip, form, cards)) is not None]
    if not found:
        return Row(chip, None, "does not fit" + (f" on {cards}" if cards else ""))
    return Row(chip, min(found, key=lambda one: (one.answer != "yes", one.form in SMALL, one.cards)))


def _fewest(question: Question, chip: Chip, form: Form, cards: int | None) -> Fit | None:
    asked = msgspec.structs.replace(question.want, form=form)
    if cards is None:
        return least_cards(question.anatomy, chip, asked, answers=("yes", "unknown"))
    one = fit(question.anatomy, chip, cards, asked)
    return one if one.answer != "no" else None


def table(question: Question, rows: Sequence[Row], catalog: Catalog, cards: int | None) -> Iterator[str]:
    """All chips, a line each, under their vendors."""
    want = question.want
    yield from headline(question)
    requests = f"{want.concurrency:,} request{'s' * (want.concurrency > 1)} of {want.context:,} tokens"
    number = f"{cards} cards each" if cards else "the fewest cards that hold it"
    yield f"for {requests}, cache in {want.cache.name}, sized as {want.rule.name} does; {number}"
    yield ""
    head = ["chip", "memory GB", "cards", "weights", "layout", "left GB", "tokens", "requests"]
    lines = columns([head, *map(_cells, rows)], left=(0, 3, 4))
    yield lines[0]
    vendor = ""
    for row, line in zip(rows, lines[1:], strict=True):
        if row.chip.vendor != vendor:
            vendor = row.chip.vendor
            yield f"{catalog.vendors[vendor].name} ({vendor})"
        yield line if row.fit else f"{line}  {row.why}"
    yield ""
    yield LEGEND
    yield "memory: of a card; left: for the cache of one device; tokens: that it holds, all groups together"
    yield "cards: tried are powers of two within a machine, then whole machines, up to 32"
    yield "weights: ? where no source read says that the chip runs them: only the memory is known to do"


def _cells(row: Row) -> list[str]:
    memory = marked(row.chip.memory_gb)
    one = row.fit
    if one is None:
        return [row.chip.id, memory, "", "", "", "", "", ""]
    known = MARKS[one.suits.evidence] if one.suits.answer == "yes" else "?"
    return [
        row.chip.id,
        memory,
        f"{one.cards}",
        f"{one.form} {known}",
        str(one.layout),
        gigabytes(one.left_bytes or 0.0),
        f"{one.tokens * one.groups:,}",
        f"{one.users:,}",
    ]
