"""Whose cards these are: by PCI id, by the wheel of PyTorch, by marker modules. The device type does not say: seven
vendors' stacks call themselves by one.

Owns the signs and their order. Imports nothing to look, and knows no vendor: which sign is whose stands in the catalog.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from twinline.facts.chips import Catalog, load

By = Literal["pci", "wheel", "module", "torch.version"]
# From the surest to the least sure.
ORDER: tuple[By, ...] = ("pci", "wheel", "module", "torch.version")
PCI = Path("/sys/bus/pci/devices")
# Base classes of the PCI Code and ID Assignment Specification: display, co-processor, processing accelerator.
ACCELERATORS = ("03", "0b", "12")
DISPLAY = "03"


class Sign(msgspec.Struct, frozen=True):
    """One reason to think that this node has, or is set up for, a vendor's cards."""

    vendor: str
    by: By
    what: str


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """A device on the PCI bus whose vendor the catalog knows. `sure`: it is an accelerator, not perhaps the display of
    a processor."""

    vendor: str
    bus: str
    device_id: str
    pci_class: str
    name: str | None
    sure: bool


def sightings(root: Path = PCI, catalog: Catalog | None = None) -> tuple[Sighting, ...]:
    """The accelerators on the PCI bus, in the order of their addresses; none where the system shows no bus."""
    catalog = catalog or load()
    found = []
    try:
        folders = sorted(root.iterdir())
    except OSError:
        return ()
    for folder in folders:
        vendor_id, device_id, pci_class = (_hex(folder / name) for name in ("vendor", "device", "class"))
        for vendor in catalog.vendors.values():
            if vendor_id in vendor.pci.ids and pci_class[:2] in ACCELERATORS:
                name = vendor.pci.devices.get(device_id)
                sure = name is not None or not vendor.pci.shared or pci_class[:2] != DISPLAY
                found.append(Sighting(vendor=vendor.id, bus=folder.name, device_id=device_id, pci_class=pci_class,
                                      name=name, sure=sure))  # fmt: skip
    return tuple(found)


def _hex(path: Path) -> str:
    """`0x19e5` -> `19e5`; a class has six digits."""
    try:
        return path.read_text("ascii", "replace").strip().lower().removeprefix("0x")
    except OSError:
        return ""


def _torch_version() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _torch_fields() -> frozenset[str]:
    """The attributes that the installed `torch/version.py` sets, read as text."""
    try:
        spec = importlib.util.find_spec("torch")
        text = (Path(spec.origin).parent / "version.py").read_text("utf-8") if spec and spec.origin else ""
    except (ImportError, ValueError, OSError):
        return frozenset()
    return frozenset(re.findall(r"^(\w+)(?::[^=\n]*)?\s*=\s*['\"]", text, re.MULTILINE))


class Software(msgspec.Struct, frozen=True):
    """How to look at the Python side; a test puts its own in."""

    torch_version: Callable[[], str | None] = _torch_version
    has_module: Callable[[str], bool] = _has_module
    torch_fields: Callable[[], frozenset[str]] = _torch_fields


INSTALLED = Software()


def signs(
    seen: tuple[Sighting, ...], software: Software = INSTALLED, catalog: Catalog | None = None
) -> tuple[Sign, ...]:
    """All signs of all vendors, the surest first."""
    catalog = catalog or load()
    found = [*_on_the_bus(seen), *_in_python(software, catalog)]
    return tuple(sorted(found, key=lambda sign: ORDER.index(sign.by)))


def _on_the_bus(seen: tuple[Sighting, ...]) -> Iterator[Sign]:
    for vendor in dict.fromkeys(one.vendor for one in seen if one.sure):
        mine = [one for one in seen if one.vendor == vendor and one.sure]
        yield Sign(vendor, "pci", f"{len(mine)} on the PCI bus, the first at {mine[0].bus}")


def _in_python(software: Software, catalog: Catalog) -> Iterator[Sign]:
    version, fields = software.torch_version(), software.torch_fields()
    for vendor in catalog.vendors.values():
        markers = vendor.pytorch.markers
        for tag in markers.wheel:
            if version and tag in version:
                yield Sign(vendor.id, "wheel", f"torch {version} has {tag}")
        for module in markers.modules:
            if software.has_module(module):
                yield Sign(vendor.id, "module", f"module {module} is installed")
        for field in markers.version_fields:
            if field in fields:
                yield Sign(vendor.id, "torch.version", f"torch.version.{field} is set")


def vendor_of(device_type: str, found: tuple[Sign, ...], catalog: Catalog | None = None) -> Sign | None:
    """Whose a PyTorch device type is on this node: the surest sign of a vendor that uses it. None where nothing says,
    or where equally sure signs point to several vendors."""
    catalog = catalog or load()
    mine = [sign for sign in found if catalog.vendors[sign.vendor].pytorch.device == device_type]
    for by in ORDER:
        at = [sign for sign in mine if sign.by == by]
        if len({sign.vendor for sign in at}) == 1:
            return at[0]
        if at:
            return None
    return None


def printed_by(tool: str, text: str, candidates: tuple[str, ...], catalog: Catalog | None = None) -> tuple[str, ...]:
    """Which of several vendors whose tools share a name printed this: those whose signs stand in it and in no one
    else's list; all of them if it does not say."""
    catalog = catalog or load()
    marks = {
        vendor: {sign for one in catalog.vendors[vendor].tools if one.name == tool for sign in one.signs}
        for vendor in candidates
    }
    hits = {vendor: sum(mark in text for mark in own) for vendor, own in marks.items()}
    best = max(hits.values(), default=0)
    return tuple(vendor for vendor in candidates if hits[vendor] == best) if best else candidates
