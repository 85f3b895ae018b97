"""What changed between two looks at a node, in words.

Owns what counts as a change: cards that come and go, their health, what they can hold, processes, and memory by more
than a flicker. Must not know tools.
"""

from __future__ import annotations

from collections.abc import Iterator

from twinline.cards.card import Card
from twinline.cards.look import Seen
from twinline.cli.devices_text import gigabytes, number

FLICKER = 64 << 20  # bytes of memory that come and go by themselves


def changes(before: Seen, now: Seen) -> Iterator[str]:
    old, new = _keyed(before), _keyed(now)
    for key, card in old.items():
        if key not in new:
            yield f"{card.label}: gone"
    for key, card in new.items():
        if key not in old:
            yield f"{card.label}: new"
        else:
            yield from _of_card(old[key], card)
    for finding in now.findings:
        if finding not in before.findings:
            yield f"{finding.vendor} {finding.tool}: {finding.message}"


def _keyed(seen: Seen) -> dict[tuple[object, ...], Card]:
    """The cards by what stays the same; a UUID alone is not enough, since it may not be printed next time."""
    return {
        (card.vendor, card.card, card.device, None if card.card is not None else card.bus): card for card in seen.cards
    }


def _of_card(old: Card, new: Card) -> Iterator[str]:
    if old.health != new.health:
        yield f"{new.label}: health {old.health} -> {new.health} ({new.reason})"
    if old.uuid and new.uuid and old.uuid != new.uuid:
        yield f"{new.label}: another card, {old.uuid} -> {new.uuid}"
    if old.memory_total != new.memory_total:
        yield f"{new.label}: memory in all {gigabytes(old.memory_total)} -> {gigabytes(new.memory_total)} GiB"
    used, uses = old.memory_used, new.memory_used
    if (used is None) != (uses is None) or (used is not None and uses is not None and abs(uses - used) > FLICKER):
        yield f"{new.label}: memory in use {gigabytes(used)} -> {gigabytes(uses)} GiB"
    if old.watt_limit != new.watt_limit:
        yield f"{new.label}: power limit {number(old.watt_limit)} -> {number(new.watt_limit)} W"
    if old.processes is not None and new.processes is not None:
        had, has = ({process.pid for process in card.processes or ()} for card in (old, new))
        yield from (f"{new.label}: process {pid} ended" for pid in sorted(had - has))
        yield from (f"{new.label}: process {pid} began" for pid in sorted(has - had))
