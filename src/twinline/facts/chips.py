"""The catalog of chips: what is known of each, how it is known, and which vendor's software it needs.

Owns the shapes of a chip and of the catalog, and finding one by name. Must not know torch, the cards of this machine,
or how the files under `data/chips` are laid out (`chip_files.py`).
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Literal

import msgspec

from twinline.facts.evidence import Figure, How, Support
from twinline.facts.vendors import Vendor

Precision = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8-e4m3", "int8", "int4", "fp4"]
PRECISIONS: tuple[Precision, ...] = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8-e4m3", "int8", "int4", "fp4")


class UnknownChip(LookupError):
    """No chip has this name; the message says which names come near."""


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The scale-up domain: `cards` that reach one another over `link`, and its shape in words."""

    link: str
    cards: Figure
    note: str = ""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was asked or paid, from `low` to `high` (equal for one number), per `unit`, at `date`."""

    kind: Literal["cloud", "cloud-median", "purchase", "launch", "assumed-rental"]
    low: float
    high: float
    currency: str
    unit: Literal["card-hour", "card"]
    date: str
    how: How
    source: str


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether a checkpoint in this form suits a chip, and why. `computes` is the precision of its matrix products."""

    form: str
    verdict: Literal["use", "avoid", "impossible"]
    computes: Precision
    why: str
    evidence: How
    source: str


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A throughput that somebody published for a chip: their load, their software, their numbers, not ours."""

    model: str
    precision: str
    setting: str
    figures: dict[str, float | str]
    how: How
    source: str
    note: str = ""


class Chip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of accelerator. All figures are per card, which may hold several devices.

    `memory_gb`: as sold (makers mean 2**30 bytes; what a driver shows is in `measured["memory_mib"]`).
    `bandwidth_gbs`: of its memory, GB/s, declared. `peaks`: declared dense TFLOPS, for integers TOPS, one for each of
    PRECISIONS, unknown ones as such. `precisions`: whether the chip computes in each of PRECISIONS.
    `link_gbs`: both directions together, GB/s. `watts`: as declared, or the cap that a tool shows (then `measured`).
    `measured`: what somebody read or measured, by name with unit: `memory_mib`, `bandwidth_gbs`, `bf16_tflops`, ...
    """

    id: str
    vendor: str
    name: str
    aliases: tuple[str, ...] = ()
    prints: tuple[str, ...] = ()
    devices_per_card: int = 1
    memory_gb: Figure
    bandwidth_gbs: Figure
    peaks: dict[Precision, Figure]
    precisions: dict[Precision, Support]
    link_gbs: Figure
    domain: Domain
    cards_per_node: Figure
    watts: Figure
    price: tuple[Price, ...] = ()
    measured: dict[str, Figure] = {}
    weights: tuple[Weights, ...] = ()
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, self.name, *self.aliases)

    def rate(self, precision: Precision) -> Figure:
        """Dense TFLOPS or TOPS, measured before declared: what matrix products reached if anybody measured it."""
        unit = "tops" if precision.startswith("int") else "tflops"
        return self.measured.get(f"{precision.replace('-', '_')}_{unit}", self.peaks[precision])

    def memory_bytes(self) -> Figure:
        """Bytes per card: as a driver shows them if anybody read that, else as sold (GB of 2**30 bytes)."""
        seen = self.measured.get("memory_mib")
        if seen is not None and seen.value is not None:
            return Figure(seen.value * 2**20, seen.how, seen.source, seen.note)
        sold = self.memory_gb
        if sold.value is None:
            return sold
        return Figure(
            sold.value * 2**30, sold.how, sold.source, "as sold, GB of 2**30 bytes; drivers show a little less"
        )


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vendor that uses a name, and what it means there."""

    vendor: str
    meaning: str


class Collision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A name that several vendors use, and what tells them apart."""

    name: str
    owners: tuple[Owner, ...]
    tell: str
    source: str


def plain(name: str) -> str:
    """A name without case, blanks and punctuation: `Ascend 910-B3` and `ascend910b3` are one."""
    return re.sub(r"[\W_]+", "", name.casefold())


class Catalog(msgspec.Struct, frozen=True):
    """All that is known: vendors and chips by id, and the names that vendors share."""

    vendors: dict[str, Vendor]
    chips: dict[str, Chip]
    collisions: tuple[Collision, ...]

    def find(self, name: str) -> Chip:
        """The chip of this id, name or alias, however it is spelt. Raises UnknownChip, which names near misses."""
        wanted = plain(name)
        known = {plain(one): chip for chip in self.chips.values() for one in chip.names}
        if wanted in known:
            return known[wanted]
        near = [chip.id for spelt, chip in known.items() if len(wanted) > 1 and (wanted in spelt or spelt in wanted)]
        near += [known[spelt].id for spelt in difflib.get_close_matches(wanted, known, n=5, cutoff=0.6)]
        few = list(dict.fromkeys(near))[:5]
        hint = f"did you mean {', '.join(few)}?" if few else "`twinline chips` lists them all"
        raise UnknownChip(f"no chip is called {name!r}; {hint}")

    def vendor(self, chip: str) -> Vendor | None:
        """Whose software a chip of this id, name or alias needs; None if no chip is called so."""
        try:
            return self.vendors[self.find(chip).vendor]
        except UnknownChip:
            return None

    def of(self, vendor: str) -> tuple[Chip, ...]:
        """All chips of a vendor, in the order of its file."""
        return tuple(chip for chip in self.chips.values() if chip.vendor == vendor)

    def printed(self, vendor: str, text: str) -> Chip | None:
        """The chip that a management tool or a driver of this vendor calls `text`; None if no source says."""
        wanted, chips = plain(text), self.of(vendor)
        found = [chip for chip in chips if wanted in map(plain, chip.prints)]
        found += [chip for chip in chips if wanted in map(plain, chip.names)]
        return found[0] if wanted and found else None


@cache
def load() -> Catalog:
    """The catalog of the package. Raises `chip_files.CatalogError`, with file and field, if it is unsound."""
    from twinline.facts.chip_files import read_catalog  # needs the shapes above

    return read_catalog()
