"""Reading the catalog's files and refusing what is not sound, with file and field.

Owns the short forms in which the files are written, and the rules that hold between facts. Must not know any
chip.

`data/chips/VENDOR.yaml` holds one vendor and its chips; `data/sources.yaml` what short names of sources stand for;
`data/collisions.yaml` names that vendors share. `docs/chips.md` is the guide for who writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from twinline.facts.chips import PRECISIONS, Catalog, Chip, Collision, plain
from twinline.facts.evidence import NO_EVIDENCE, NOT_FOUND, Figure, Support, unknown
from twinline.facts.plain_yaml import NotPlain, read_yaml
from twinline.facts.vendors import Vendor

DATA = Path(__file__).parent / "data"
# Names of measured figures carry the unit.
MEASURED = frozenset(
    {"memory_mib", "idle_used_mib", "bandwidth_gbs", "watts_cap", "watts_mean", "compute_units"}
    | {f"{p.replace('-', '_')}_{'tops' if p.startswith('int') else 'tflops'}" for p in PRECISIONS}
)  # fmt: skip
JOINT = "; "  # between the sources of one fact
T = TypeVar("T")
Json = dict[str, Any]


class CatalogError(ValueError):
    """A file of the catalog is not sound; the message names file and field."""


def read_catalog(folder: Path = DATA) -> Catalog:
    """The catalog in `folder`. Raises CatalogError for the first thing that is not sound."""
    shared = _texts(folder / "sources.yaml", _read(folder / "sources.yaml"), "")
    vendors: dict[str, Vendor] = {}
    chips: dict[str, Chip] = {}
    for file in sorted((folder / "chips").glob("*.yaml")):
        for chip in _vendor_file(file, shared, vendors):
            if chip.id in chips:
                raise CatalogError(f"{file.name}: chips.{chip.id}: {chips[chip.id].vendor}.yaml has a chip of this id")
            chips[chip.id] = chip
    _refuse_shared_names(chips)
    return Catalog(vendors, chips, tuple(_collisions(folder / "collisions.yaml", shared, vendors)))


def _read(file: Path) -> Json:
    try:
        content = read_yaml(file)
    except (NotPlain, OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file.name}: {error}") from None
    if not isinstance(content, dict):
        raise CatalogError(f"{file.name}: should be a mapping")
    return content


def _texts(file: Path, content: Any, where: str) -> dict[str, str]:
    texts = _convert(file, where, content, dict[str, str])
    for name, text in texts.items():
        if not text.strip() or JOINT in text:
            raise CatalogError(f"{file.name}: {f'{where}.' if where else ''}{name}: should be text without {JOINT!r}")
    return texts


def _convert(file: Path, where: str, raw: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at ")  # then `$.peaks`, or: key in `$.peaks`
        field = f"{where}{path.rpartition('$')[2].rstrip('`')}".strip(".")
        raise CatalogError(f"{file.name}: {f'{field}: ' if field else ''}{what}") from None


def _vendor_file(file: Path, shared: dict[str, str], vendors: dict[str, Vendor]) -> Iterator[Chip]:
    content = _read(file)
    if extra := content.keys() - {"vendor", "sources", "chips"}:
        raise CatalogError(f"{file.name}: {sorted(extra)[0]}: unknown; a file holds vendor, sources and chips")
    own = _texts(file, content.get("sources") or {}, "sources")
    if twice := own.keys() & shared.keys():
        raise CatalogError(f"{file.name}: sources.{min(twice)}: sources.yaml has it already")
    sources = shared | own
    vendor = _convert(file, "vendor", _with_sources(file, "vendor", content.get("vendor"), sources), Vendor)
    if vendor.id != file.stem:
        raise CatalogError(f"{file.name}: vendor.id: should be {file.stem}, as the file is called, not {vendor.id}")
    for at, pci in enumerate((*vendor.pci.ids, *vendor.pci.devices)):
        if len(pci) != 4 or set(pci) - set("0123456789abcdef"):
            raise CatalogError(f"{file.name}: vendor.pci[{at}]: {pci!r} is not four lower-case hex digits")
    vendors[vendor.id] = vendor
    entries = content.get("chips")
    if not isinstance(entries, list) or not entries:
        raise CatalogError(f"{file.name}: chips: should be a list of at least one chip")
    for at, raw in enumerate(entries):
        name = raw.get("id") if isinstance(raw, dict) else None
        yield _chip(file, f"chips.{name or at}", raw, vendor.id, sources)


def _with_sources(file: Path, where: str, raw: Any, sources: dict[str, str]) -> Any:
    """`raw` with each `source` (a short name, or several in a list) replaced by what it stands for."""
    if isinstance(raw, list):
        return [_with_sources(file, f"{where}[{at}]", one, sources) for at, one in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    written = {}
    for key, value in raw.items():
        if key == "source":
            names = value if isinstance(value, list) else [value]
            for name in names:
                if not isinstance(name, str) or name not in sources:
                    raise CatalogError(f"{file.name}: {where}.source: {name!r} stands neither here nor in sources.yaml")
            written[key] = JOINT.join(sources[name] for name in names)
        else:
            written[key] = _with_sources(file, f"{where}.{key}", value, sources)
    return written


def _chip(file: Path, where: str, raw: Any, vendor: str, sources: dict[str, str]) -> Chip:
    if not isinstance(raw, dict):
        raise CatalogError(f"{file.name}: {where}: should be a mapping")
    if "vendor" in raw:
        raise CatalogError(f"{file.name}: {where}.vendor: the file says it")
    filled = _long_form(file, where, _with_sources(file, where, raw, sources)) | {"vendor": vendor}
    for field, shape in (("peaks", Figure), ("measured", Figure), ("precisions", Support)):
        if isinstance(filled.get(field), dict):
            for name, one in filled[field].items():
                _convert(file, f"{where}.{field}.{name}", one, shape)  # names the entry, as the whole chip's would not
    chip = _convert(file, where, filled, Chip)
    for field, fault in _faults(chip):
        raise CatalogError(f"{file.name}: {where}.{field}: {fault}")
    return chip


def _long_form(file: Path, where: str, raw: Json) -> Json:
    """The short forms spelt out: `unknown` for a figure, and precisions told in groups."""
    chip = dict(raw)
    for field in ("memory_gb", "bandwidth_gbs", "link_gbs", "cards_per_node", "watts"):
        if field in chip:
            chip[field] = _figure(chip[field])
    if isinstance(chip.get("domain"), dict):
        chip["domain"] = chip["domain"] | {"cards": _figure(chip["domain"].get("cards"))}
    peaks = chip.get("peaks")
    if isinstance(peaks, dict):
        chip["peaks"] = {p: msgspec.to_builtins(unknown()) for p in PRECISIONS if p not in peaks} | peaks
    chip["precisions"] = dict(_precisions(file, f"{where}.precisions", chip.get("precisions")))
    return chip


def _figure(raw: Any) -> Any:
    """`unknown`, or `{how: unknown, note: ...}`, as a whole figure. `source` stays out: it is no short name."""
    if raw == "unknown":
        return msgspec.to_builtins(unknown())
    if isinstance(raw, dict) and raw.get("how") == "unknown" and "source" not in raw:
        return {"value": None, "source": NOT_FOUND, **raw}
    return raw


def _precisions(file: Path, where: str, groups: Any) -> Iterator[tuple[str, Any]]:
    """Groups that have one answer in common: `{answer: no, for: [fp8-e4m3], evidence: ..., source: ...}`."""
    told: set[str] = set()
    for group in groups if isinstance(groups, list) else [None]:
        whom = group.get("for") if isinstance(group, dict) else None
        if not isinstance(whom, list) or not all(isinstance(precision, str) for precision in whom):
            raise CatalogError(f"{file.name}: {where}: should be a list of groups, each with `for: [precision, ...]`")
        one = {key: value for key, value in (group or {}).items() if key != "for"}
        if one == {"answer": "unknown"}:
            one = msgspec.to_builtins(NO_EVIDENCE)
        for precision in whom:
            if precision in told:
                raise CatalogError(f"{file.name}: {where}.{precision}: told twice")
            told.add(precision)
            yield precision, one
    if missing := [p for p in PRECISIONS if p not in told]:
        raise CatalogError(
            f"{file.name}: {where}: {', '.join(missing)} missing; what is not known is `answer: unknown`"
        )


def _faults(chip: Chip) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) for everything that a shape alone cannot refuse."""
    for field, figure in figures(chip):
        if fault := figure.faults():
            yield field, fault
    for precision, support in chip.precisions.items():
        if fault := support.faults():
            yield f"precisions.{precision}", fault
        if chip.peaks[precision].known and support.answer in ("no", "unknown"):
            yield f"peaks.{precision}", f"has a rate, but precisions say {support.answer}"
    if plain(chip.id) != chip.id.replace("-", ""):
        yield "id", f"{chip.id!r} should be lower-case letters, digits and hyphens"
    if chip.devices_per_card < 1:
        yield "devices_per_card", f"should be at least 1, not {chip.devices_per_card}"
    for name, figure in chip.measured.items():
        if name not in MEASURED:
            yield f"measured.{name}", f"unknown; known are {', '.join(sorted(MEASURED))}"
        if figure.how != "measured":
            yield f"measured.{name}.how", f"should be measured, not {figure.how}"
    for at, price in enumerate(chip.price):
        if not 0 < price.low <= price.high:
            yield f"price[{at}]", f"{price.low:g} to {price.high:g} is no range"
    for at, weights in enumerate(chip.weights):
        if weights.verdict == "use" and chip.precisions[weights.computes].answer == "no":
            yield f"weights[{at}]", f"cannot be used: the chip does not compute in {weights.computes}"
    told = [(f"price[{at}]", one.how, one.source) for at, one in enumerate(chip.price)]
    told += [(f"weights[{at}]", one.evidence, one.source) for at, one in enumerate(chip.weights)]
    told += [(f"published[{at}]", one.how, one.source) for at, one in enumerate(chip.published)]
    yield from (
        (field, "needs a source and how it is known") for field, how, source in told if how == "unknown" or not source
    )


def figures(chip: Chip) -> Iterator[tuple[str, Figure]]:
    """Every figure of a chip, by the field that holds it."""
    for field in ("memory_gb", "bandwidth_gbs", "link_gbs", "cards_per_node", "watts"):
        yield field, getattr(chip, field)
    yield "domain.cards", chip.domain.cards
    yield from ((f"peaks.{precision}", figure) for precision, figure in chip.peaks.items())
    yield from ((f"measured.{name}", figure) for name, figure in chip.measured.items())


def _refuse_shared_names(chips: dict[str, Chip]) -> None:
    """A name or alias leads to one chip; what a tool prints, to one chip of its vendor."""
    owner: dict[tuple[str, str], str] = {}
    for chip in chips.values():
        for scope, names in (("", chip.names), (chip.vendor, chip.prints)):
            for name in names:
                other = owner.setdefault((scope, plain(name)), chip.id)
                if other != chip.id:
                    raise CatalogError(f"{chip.vendor}.yaml: chips.{chip.id}: {name!r} is a name of {other} too")


def _collisions(file: Path, shared: dict[str, str], vendors: dict[str, Vendor]) -> Iterator[Collision]:
    content = _read(file)
    for at, raw in enumerate(content.get("collisions") or []):
        where = f"collisions[{at}]"
        collision = _convert(file, where, _with_sources(file, where, raw, shared), Collision)
        for owner in collision.owners:
            if owner.vendor not in vendors:
                raise CatalogError(f"{file.name}: {where}.owners: {owner.vendor!r} is no vendor of the catalog")
        yield collision
