"""What is seen of a card: its numbers, its links to others, and what went wrong while looking.

Owns the shapes. Must not know any tool. `None` means that no tool said it: nothing is worked out, nothing is guessed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Condition = Literal["ok", "bad", "unknown"]


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process that a tool shows on a device; `memory` in bytes."""

    pid: int
    name: str | None = None
    memory: int | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One device as its tools show it. A card that holds two devices is two of these, with one `card` number.

    `card`, `device`: the tool's number of the card, and of the device on it. `logical`: the number by which programs
    count, where a tool says it apart. `bus`: PCI address, `0000:5a:00.0`. `memory_*`: bytes. `utilisation`: percent.
    `temperature`: degrees Celsius. `watts`, `watt_limit`: on cards of two devices some tools print them once only.
    `processes`: empty where a tool says that there are none.
    """

    vendor: str
    tool: str
    chip: str | None = None
    """The catalog's id of the chip, where it knows what the tool prints."""
    name: str | None = None
    """As printed."""
    uuid: str | None = None
    serial: str | None = None
    bus: str | None = None
    card: int | None = None
    device: int | None = None
    logical: int | None = None
    memory_total: int | None = None
    memory_used: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    watts: float | None = None
    watt_limit: float | None = None
    driver: str | None = None
    cores: int | None = None
    health: Condition = "unknown"
    reason: str = "no tool speaks of its health"
    processes: tuple[Process, ...] | None = None

    @property
    def label(self) -> str:
        """`huawei 3/1`: vendor, card and device; the address or the UUID where no tool numbers it."""
        if self.card is None:
            return " ".join(part for part in (self.vendor, self.bus or self.uuid) if part)
        return f"{self.vendor} {self.card}" + (f"/{self.device}" if self.device is not None else "")


# How far two ends are, nearest first. direct: a link of the maker's own. switch: one PCIe bridge. bridges: several.
# host-bridge, node: over the processor's own bridges, in one NUMA node. system: over the link between NUMA nodes.
Nearness = Literal["direct", "switch", "bridges", "host-bridge", "node", "system", "network", "unknown"]
NEARNESS: tuple[Nearness, ...] = (
    "direct", "switch", "bridges", "host-bridge", "node", "system", "network", "unknown",
)  # fmt: skip


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool says of the way from one end to another; `printed` is its own word (`NV18`, `HCCS`, `PIX`)."""

    start: str
    end: str
    kind: Nearness
    printed: str


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The links that a tool shows. That it shows none is no proof that there are none."""

    vendor: str
    tool: str
    ends: tuple[str, ...]
    links: tuple[Link, ...]

    def between(self, start: str, end: str) -> Link | None:
        return next((link for link in self.links if (link.start, link.end) == (start, end)), None)

    def groups(self, kind: Nearness = "direct") -> tuple[tuple[str, ...], ...]:
        """Ends that reach one another over links at least as near as `kind`, in the tool's order; loners left out."""
        limit, groups = NEARNESS.index(kind), [{end} for end in self.ends]
        for link in self.links:
            if NEARNESS.index(link.kind) <= limit:
                joined = [group for group in groups if link.start in group or link.end in group]
                groups = [group for group in groups if group not in joined] + [set().union(*joined)]
        found = [tuple(end for end in self.ends if end in group) for group in groups if len(group) > 1]
        return tuple(sorted(found, key=lambda group: self.ends.index(group[0])))


Trouble = Literal["missing", "broken", "timeout", "permission", "unparsable", "doubtful", "not-available"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong while looking, or that a person should know. `text` is what the tool said."""

    kind: Trouble
    vendor: str
    tool: str
    message: str
    text: str = ""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one output holds."""

    cards: tuple[Card, ...] = ()
    topology: Topology | None = None
    findings: tuple[Finding, ...] = ()
