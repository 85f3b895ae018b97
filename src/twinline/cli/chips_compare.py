"""Several chips side by side: the same figure of each in one line, with how it is known.

Owns the layout. Must not know any chip.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from twinline.cli.chips_text import LEGEND, MARKS, both, computing, marked
from twinline.cli.terminal import width
from twinline.facts.chips import PRECISIONS, Chip
from twinline.facts.evidence import Figure

LABEL = 22


def compare(chips: Sequence[Chip]) -> Iterator[str]:
    each = (width() - LABEL) // len(chips) - 2
    for label, cells in _rows(chips):
        wrapped = [textwrap.wrap(cell, each, break_on_hyphens=False) or [""] for cell in cells]
        for at, line in enumerate(zip_longest(*wrapped, fillvalue="")):
            yield (f"{label if at == 0 else '':<{LABEL}}" + "  ".join(f"{part:<{each}}" for part in line)).rstrip()
    yield ""
    yield LEGEND
    yield "two numbers: declared, measured (reached by a program, below a peak)   `twinline chips NAME` has the sources"


def _rows(chips: Sequence[Chip]) -> Iterator[tuple[str, list[str]]]:
    yield "", [chip.id for chip in chips]
    yield "name", [chip.name for chip in chips]
    yield "vendor", [chip.vendor for chip in chips]
    yield "devices on a card", [str(chip.devices_per_card) for chip in chips]
    yield "memory GB", [marked(chip.memory_gb) for chip in chips]
    yield "memory in driver MiB", [_measured(chip, "memory_mib") for chip in chips]
    yield "bandwidth GB/s", [both(chip.bandwidth_gbs, chip.measured.get("bandwidth_gbs")) for chip in chips]
    for precision in PRECISIONS:
        yield precision, [computing(chip, precision) for chip in chips]
    yield "link GB/s", [marked(chip.link_gbs) for chip in chips]
    yield "cards over the link", [f"{marked(chip.domain.cards)} {chip.domain.link}" for chip in chips]
    yield "cards in a node", [marked(chip.cards_per_node) for chip in chips]
    yield "watts", [marked(chip.watts) for chip in chips]
    yield "bf16 TFLOPS a watt", [_ratio(chip.rate("bf16"), chip.watts) for chip in chips]
    yield "checkpoints to use", [_forms(chip, "use") for chip in chips]
    yield "to avoid", [_forms(chip, "avoid") for chip in chips]
    yield "impossible", [_forms(chip, "impossible") for chip in chips]
    yield "prices", [_prices(chip) for chip in chips]


def _measured(chip: Chip, name: str) -> str:
    figure = chip.measured.get(name)
    return marked(figure) if figure else "?"


def _ratio(rate: Figure, watts: Figure) -> str:
    """A figure worked out of two; it is as sure as the weaker of them, and marked as worked out."""
    if rate.value is None or watts.value is None:
        return "?"
    return f"{rate.value / watts.value:.2f} e"


def _forms(chip: Chip, verdict: str) -> str:
    return ", ".join(one.form for one in chip.weights if one.verdict == verdict) or "-"


def _prices(chip: Chip) -> str:
    parts = []
    for price in chip.price:
        value = f"{price.low:g}" if price.low == price.high else f"{price.low:g}-{price.high:g}"
        parts.append(f"{value} {price.currency}/{price.unit} {price.kind} {price.date} {MARKS[price.how]}")
    return "; ".join(parts) or "?"
