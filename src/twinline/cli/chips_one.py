"""All that is known of one chip, each figure with how it is known and where it was read.

Owns the layout of the page. Must not know any chip.
"""

from __future__ import annotations

from collections.abc import Iterator

from twinline.cli.chips_text import Sources, columns, number, wrapped
from twinline.cli.chips_vendor import shared_names, software
from twinline.facts.chips import PRECISIONS, Catalog, Chip
from twinline.facts.evidence import Figure

UNITS = {
    "memory_mib": ("memory in the driver", "MiB"),
    "idle_used_mib": ("memory used when idle", "MiB"),
    "bandwidth_gbs": ("bandwidth", "GB/s"),
    "watts_cap": ("power cap", "W"),
    "watts_mean": ("mean power under load", "W"),
    "compute_units": ("compute units", ""),
}


def describe(catalog: Catalog, chip: Chip) -> Iterator[str]:
    vendor, sources = catalog.vendors[chip.vendor], Sources()
    yield f"{chip.name} ({chip.id}), {vendor.name}"
    if chip.aliases:
        yield from wrapped("  also called", ", ".join(chip.aliases), 16)
    if chip.prints:
        yield from wrapped("  tools print", ", ".join(chip.prints), 16)
    if chip.devices_per_card > 1:
        yield from wrapped("  devices", f"{chip.devices_per_card} on a card; figures are for the card", 16)
    yield from ("", "Figures", *_figures(_declared(chip), sources))
    if chip.measured:
        yield from ("", "Measured", *_figures(_measured(chip), sources))
    yield from ("", "Precisions (dense TFLOPS, for integers TOPS)", *_precisions(chip, sources))
    if chip.weights:
        yield from ("", "Which checkpoint", *_weights(chip, sources))
    if chip.published:
        yield from (
            "",
            "Published throughput (others' loads and software, not measured here)",
            *_published(chip, sources),
        )
    if chip.price:
        yield from ("", "Prices", *_prices(chip, sources))
    if chip.notes:
        yield ""
        for note in chip.notes:
            yield from wrapped("  -", note, 4)
    yield from ("", *software(vendor, sources))
    yield from shared_names(catalog, vendor.id)
    yield from ("", "Sources", *sources.lines())


def _declared(chip: Chip) -> Iterator[tuple[str, str, Figure]]:
    yield "memory", "GB", chip.memory_gb
    yield "bandwidth", "GB/s", chip.bandwidth_gbs
    yield "link, both ways", "GB/s", chip.link_gbs
    yield "cards reached by link", "", _with_link(chip)
    yield "cards in a node", "", chip.cards_per_node
    yield "power", "W", chip.watts


def _with_link(chip: Chip) -> Figure:
    """The scale-up domain's size, with the link's name and shape in the note."""
    cards, told = chip.domain.cards, [chip.domain.link if chip.domain.link != "unknown" else "", chip.domain.note]
    note = "; ".join(part for part in (*told, cards.note) if part)
    return Figure(cards.value, cards.how, cards.source, note, cards.others)


def _measured(chip: Chip) -> Iterator[tuple[str, str, Figure]]:
    for name, figure in chip.measured.items():
        if name in UNITS:
            yield *UNITS[name], figure
        else:
            precision, _, unit = name.rpartition("_")
            yield precision.replace("_", "-"), unit.upper(), figure


def _figures(rows: Iterator[tuple[str, str, Figure]], sources: Sources) -> Iterator[str]:
    for label, unit, figure in rows:
        value = "?" if figure.value is None else f"{number(figure.value)} {unit}".rstrip()
        start = f"  {label:<22}{value:>14}  {figure.how:<9}"
        yield from wrapped(start, _origin(figure, sources), 50)


def _origin(figure: Figure, sources: Sources) -> str:
    """Where a figure was read, its note, and what other sources say."""
    parts = [sources.cite(figure.source)] if figure.known else []
    parts += [figure.note] if figure.note else []
    parts += [_elsewhere(other, figure, sources) for other in figure.others]
    return " ".join(parts[:1]) + (f" {'; '.join(parts[1:])}" if len(parts) > 1 else "") if parts else ""


def _precisions(chip: Chip, sources: Sources) -> Iterator[str]:
    rows = [["", "computes", "", "declared", "", "measured"]]
    told = []
    for precision in PRECISIONS:
        support, peak, rate = chip.precisions[precision], chip.peaks[precision], chip.rate(precision)
        known = support.answer != "unknown"
        rows.append(
            [
                precision,
                support.answer if known else "?",
                f"{support.evidence} {sources.cite(support.source)}" if known else "",
                "?" if peak.value is None else number(peak.value),
                f"{peak.how} {sources.cite(peak.source)}" if peak.known else "",
                number(rate.value) if rate is not peak and rate.value is not None else "",
            ]
        )
        notes = [support.note, peak.note, *(_elsewhere(other, peak, sources) for other in peak.others)]
        told.append((precision, "; ".join(dict.fromkeys(note for note in notes if note))))
    yield from columns(rows, left=(0, 1, 2, 4))
    for precision, note in told:
        if note:
            yield from wrapped(f"    {precision}:", note, 14)


def _elsewhere(other: Figure, figure: Figure, sources: Sources) -> str:
    """What another source says of the same thing."""
    value = "the same" if other.value == figure.value else number(other.value or 0)
    return f"elsewhere {value} ({other.how} {sources.cite(other.source)}{f', {other.note}' if other.note else ''})"


def _weights(chip: Chip, sources: Sources) -> Iterator[str]:
    for one in chip.weights:
        start = f"  {one.verdict:<11}{one.form:<38}"
        yield from wrapped(start, f"{one.why} ({one.evidence} {sources.cite(one.source)})", 52)


def _published(chip: Chip, sources: Sources) -> Iterator[str]:
    for one in chip.published:
        yield from wrapped(
            "  -", f"{one.model}, {one.precision}: {one.setting} ({one.how} {sources.cite(one.source)})", 4
        )
        figures = "; ".join(
            f"{name.replace('_', ' ')} {number(value) if isinstance(value, float) else value}"
            for name, value in one.figures.items()
        )
        yield from wrapped("", figures, 6)
        if one.note:
            yield from wrapped("", one.note, 6)


def _prices(chip: Chip, sources: Sources) -> Iterator[str]:
    for price in chip.price:
        value = f"{price.low:,.2f}" if price.low == price.high else f"{price.low:,.2f} to {price.high:,.2f}"
        asked = f"{value} {price.currency} a {price.unit}, {price.date}"
        yield f"  {price.kind:<16}{asked:<44}({price.how} {sources.cite(price.source)})"
