"""One card from what several outputs say of it.

Owns which cards are the same: by UUID, then by the tool's own numbers, then by address where no two share it. Must not
know tools. The first output that says something is believed; what later ones add is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from twinline.cards.card import Card, Finding

PLAIN = {field.name: field.default for field in msgspec.structs.fields(Card)}
STAYS = ("vendor", "tool", "health", "reason")
# What cannot change between two questions; where it differs somebody is wrong.
FIXED = ("name", "uuid", "bus", "memory_total")


def joined(groups: Iterable[tuple[Card, ...]]) -> tuple[tuple[Card, ...], tuple[Finding, ...]]:
    """The cards of all outputs, each once, and findings where outputs contradict one another."""
    known: list[Card] = []
    findings: list[Finding] = []
    for group in groups:
        shared = _shared([*known, *group])
        told: dict[int, Card] = {}
        for one in group:
            at = _same(known, one, shared)
            if at is None:
                at = len(known)
                known.append(one)
            else:
                findings += _twice(told[at], one) if at in told else _differs(known[at], one)
                known[at] = _merged(known[at], one)
            told[at] = one
    doubled = {u for u, n in Counter(c.uuid for c in known if c.uuid).items() if n > 1}
    for uuid in sorted(doubled):
        owners = [card.label for card in known if card.uuid == uuid]
        message = f"{' and '.join(owners)} have one UUID, so it identifies neither"
        first = next(card for card in known if card.uuid == uuid)
        findings.append(Finding(kind="doubtful", vendor=first.vendor, tool=first.tool, message=message, text=uuid))
    return tuple(known), tuple(findings)


def _shared(cards: Iterable[Card]) -> set[tuple[str, str]]:
    """Addresses at which several devices sit: both chips of one board may print the same."""
    found: dict[tuple[str, str], set[tuple[int | None, int | None]]] = {}
    for card in cards:
        if card.bus:
            found.setdefault((card.vendor, card.bus), set()).add((card.card, card.device))
    return {key for key, owners in found.items() if len({o for o in owners if o[0] is not None}) > 1}


def _same(known: list[Card], one: Card, shared: set[tuple[str, str]]) -> int | None:
    mine = [(at, card) for at, card in enumerate(known) if card.vendor == one.vendor]
    numbered = one.card is not None
    for at, card in mine:
        if card.uuid and card.uuid == one.uuid and not _apart(card, one):
            return at
    for at, card in mine:
        if numbered and (card.card, card.device) == (one.card, one.device) and not _unlike(card.uuid, one.uuid):
            return at
    for at, card in mine:
        if one.logical is not None and one.logical == card.logical and not _apart(card, one):
            return at
    if one.bus and (one.vendor, one.bus) not in shared:
        for at, card in mine:
            if card.bus == one.bus and not _apart(card, one) and not _unlike(card.uuid, one.uuid):
                return at
    return None


def _apart(card: Card, one: Card) -> bool:
    """Whether both have numbers, and other ones."""
    return _unlike(card.card, one.card) or _unlike(card.device, one.device)


def _unlike(first: object, second: object) -> bool:
    return first is not None and second is not None and first != second


def _merged(first: Card, later: Card) -> Card:
    """What the first says, with what only the later one says; bad news is believed from either."""
    gaps = [name for name in PLAIN if name not in STAYS and getattr(first, name) is None]
    added = {name: getattr(later, name) for name in gaps}
    worse = later.health == "bad" and first.health != "bad"
    if worse or (first.health == "unknown" and later.health != "unknown"):
        added |= {"health": later.health, "reason": later.reason}
    return msgspec.structs.replace(first, **added)


def _differs(first: Card, later: Card) -> Iterable[Finding]:
    for name in FIXED:
        one, other = getattr(first, name), getattr(later, name)
        if _unlike(one, other) and not (name == "name" and (first.chip == later.chip or later.chip is None)):
            yield Finding(
                kind="doubtful",
                vendor=first.vendor,
                tool=later.tool,
                message=f"{first.label}: {name.replace('_', ' ')} is {one} in one output and {other} in another",
            )


def _twice(first: Card, one: Card) -> Iterable[Finding]:
    """One output that speaks of a card twice, with unlike values."""
    unlike = [name for name in PLAIN if name not in STAYS and _unlike(getattr(first, name), getattr(one, name))]
    if unlike:
        words = " and ".join(name.replace("_", " ") for name in unlike)
        message = f"{one.label} stands in one output twice, with other {words}; the first are shown"
        yield Finding(kind="doubtful", vendor=one.vendor, tool=one.tool, message=message)
