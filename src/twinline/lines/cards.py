"""The cards of a line: which environment shows them to its engine, and no others.

Owns that; the variables are the vendors' (`facts`). Must not know how an engine is started. In a container nothing is
set: numbers begin at 0 again there, and what it sees is its runtime's to say (`container_args`).
"""

from __future__ import annotations

from twinline.facts.chips import load
from twinline.lines.spec import LineSpec


def shown(spec: LineSpec) -> dict[str, str]:
    """What the engine's process is given so that it sees `spec.cards` alone; nothing where the line's `env` says it."""
    variables = _variables(spec)
    if not spec.cards or spec.container or variables.keys() & spec.env.keys():
        return {}
    numbers = ",".join(map(str, spec.cards))
    return {name: value.replace("{cards}", numbers) for name, value in variables.items()}


def check_cards(spec: LineSpec) -> None:
    """Raises ValueError for cards that nobody could show to the engine."""
    if not spec.cards or spec.container or spec.engine == "simulated" or _variables(spec):
        return
    vendors = load().vendors.values()
    if spec.env.keys() & {name for vendor in vendors for name in vendor.visible.set}:
        return
    vendor = load().vendor(spec.chip)
    why = f"no chip is called {spec.chip!r}" if vendor is None else f"{vendor.name} has no variable of card numbers"
    way = "name the chip, or say it in env" if vendor is None else "say it in env"
    raise ValueError(f"cards: {why}, so nothing would keep the engine from other cards: {way}")


def device(spec: LineSpec) -> str | None:
    """What PyTorch calls the one card that the engine sees; None without cards, or where no vendor is known."""
    vendor = load().vendor(spec.chip) if spec.cards else None
    return None if vendor is None else vendor.pytorch.device


def _variables(spec: LineSpec) -> dict[str, str]:
    vendor = load().vendor(spec.chip) if spec.cards else None
    return {} if vendor is None else vendor.visible.set
