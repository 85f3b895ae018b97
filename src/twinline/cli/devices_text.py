"""Cards, links and findings as a person reads them.

Owns looks alone. `?` stands for what no tool said; nothing is filled in.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from twinline.cards.card import Card, Finding, Topology
from twinline.cards.look import Seen
from twinline.cli.chips_text import columns
from twinline.cli.terminal import width

HEAD = ["card", "chip", "health", "memory used", "of GiB", "load", "temp", "watts", "limit", "address", "processes"]


def described(seen: Seen) -> Iterator[str]:
    """The table, then links, findings and signs, each under its word."""
    yield from columns([HEAD, *(_row(card) for card in seen.cards)], left=(0, 1, 2, 9), indent="")
    unwell = [card for card in seen.cards if card.health == "bad"]
    yield from _section("bad", (f"{card.label}: {card.reason}" for card in unwell))
    yield from _section("links", (line for one in seen.topologies for line in _links(one)))
    yield from _section("findings", (_finding(one) for one in seen.findings))
    yield from _section("signs", (f"{sign.vendor}: {sign.what}" for sign in seen.signs))
    if all(card.vendor == "cpu" for card in seen.cards):
        yield ""
        if seen.findings:
            yield "no accelerator could be read; the findings say what stands in the way"
        else:
            yield "no accelerator: none is seen on a PCI bus, and no management tool speaks of one"


def _section(name: str, found: Iterator[str]) -> Iterator[str]:
    for at, text in enumerate(found):
        if at == 0:
            yield ""
            yield name
        yield from textwrap.wrap(
            text, width(), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )  # fmt: skip


def _row(card: Card) -> list[str]:
    processes = "?" if card.processes is None else str(len(card.processes))
    name = card.chip or card.name or "?"
    if card.cores is not None:
        name = f"{card.name or '?'}, {card.cores} cores"
    return [
        card.label,
        name if len(name) <= 34 else name[:31] + "...",
        card.health,
        gigabytes(card.memory_used),
        gigabytes(card.memory_total),
        number(card.utilisation, "%"),
        number(card.temperature, "C"),
        number(card.watts),
        number(card.watt_limit),
        card.bus or "?",
        processes,
    ]


def number(value: float | None, unit: str = "") -> str:
    """With at most one digit after the point; `?` for what no tool said."""
    return "?" if value is None else f"{value:.1f}".removesuffix(".0") + unit


def gigabytes(count: int | None) -> str:
    """Bytes in GiB, one digit after the point."""
    return "?" if count is None else f"{count / 2**30:.1f}"


def _links(topology: Topology) -> Iterator[str]:
    """Which ends reach one another directly, by the tool's words for it, and how the rest are apart."""
    direct = [link for link in topology.links if link.kind == "direct"]
    words = "/".join(dict.fromkeys(link.printed for link in direct))
    groups = topology.groups("direct")
    if not direct:
        yield f"{topology.vendor} ({topology.tool}): no link of its own between cards is shown"
    for group in groups:
        yield f"{topology.vendor} ({topology.tool}): {' '.join(group)} directly over {words}"
    inside = {end for group in groups for end in group}
    far = [
        link
        for link in topology.links
        if link.kind != "direct" and {link.start, link.end} <= (inside or {link.start, link.end})
    ]
    apart = dict.fromkeys(f"{link.printed} ({link.kind})" for link in far)
    if apart and (len(groups) > 1 or not groups):
        yield f"  otherwise over {', '.join(apart)}"


def _finding(finding: Finding) -> str:
    who = " ".join(dict.fromkeys(part for part in (finding.vendor, finding.tool) if part))
    said = f": {finding.text}" if finding.text else ""
    return f"{finding.kind}: {who}: {finding.message}{said}"
