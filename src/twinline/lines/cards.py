"""The cards of a line: which environment shows them to its engine, and no others.

Owns that; the variables are the vendors' (`facts`). Must not know how an engine is started. In a container nothing is
set: numbers begin at 0 again there, and what it sees is its runtime's to say (`container_args`).
"""

from __future__ import annotations

from twinline.facts.chips import UnknownChip, load
from twinline.facts.vendors import Vendor
from twinline.lines.spec import LineSpec


def shown(spec: LineSpec) -> dict[str, str]:
    """What the engine's process is given so that it sees `spec.cards` alone; nothing where the line's `env` chooses."""
    vendor = _vendor(spec)
    if vendor is None or spec.container or vendor.visible.choosing & spec.env.keys():
        return {}
    numbers = ",".join(map(str, spec.cards))
    return {name: value.replace("{cards}", numbers) for name, value in vendor.visible.set.items()}


def hidden(spec: LineSpec) -> frozenset[str]:
    """What it must not inherit beside that: variables that would choose once more, among what is left."""
    vendor = _vendor(spec)
    return vendor.visible.choosing if vendor is not None and shown(spec) else frozenset()


def check_cards(spec: LineSpec) -> None:
    """Raises ValueError for cards that nobody could show to the engine, or that it cannot compute on together."""
    if spec.engine == "native" and len(spec.cards) > 1:
        raise ValueError("cards: a native line computes on one card; write a line for each")
    if not spec.cards or spec.container or spec.engine == "simulated" or shown(spec):
        return
    chosen = frozenset[str]().union(*(vendor.visible.choosing for vendor in load().vendors.values()))
    if any(name in chosen or "VISIBLE" in name for name in spec.env):
        return
    try:
        vendor = load().vendors[load().find(spec.chip).vendor]
    except UnknownChip as unknown:
        why, way = str(unknown), "name the chip, or say it in env"
    else:
        why = f"{vendor.name} has no variable of card numbers"
        way = f"say it in env ({vendor.visible.process})"
    raise ValueError(f"cards: nothing would keep the engine from other cards; {way}: {why}")


def device(spec: LineSpec) -> str | None:
    """What PyTorch calls the one card that the engine sees; None without cards, or where no vendor is known."""
    vendor = _vendor(spec)
    return None if vendor is None else vendor.pytorch.device


def _vendor(spec: LineSpec) -> Vendor | None:
    """None without cards, so that nothing is read for lines that have none."""
    return load().vendor(spec.chip) if spec.cards else None
