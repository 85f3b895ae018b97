"""The software side of a vendor, for a page of its own and below a chip's.

Owns the layout. Must not know any vendor.
"""

from __future__ import annotations

from collections.abc import Iterator

from twinline.cli.chips_text import Sources, wrapped
from twinline.facts.chips import Catalog
from twinline.facts.vendors import EngineSupport, Vendor, joined

INDENT = 18


def describe_vendor(catalog: Catalog, vendor: Vendor) -> Iterator[str]:
    sources = Sources()
    yield from software(vendor, sources)
    yield from shared_names(catalog, vendor.id)
    yield from ("", "Sources", *sources.lines())


def software(vendor: Vendor, sources: Sources) -> Iterator[str]:
    """What to install and to set, how its cards are seen, and what its engines can do; each with its origin."""
    yield f"Software of {vendor.name}"
    for fact in vendor.told():
        origin = f" ({fact.how} {sources.cite(fact.source)})" if fact.source and fact.how != "unknown" else ""
        yield from wrapped(f"  {fact.about}", fact.text + origin, INDENT)
    for engine in vendor.engines:
        yield from _engine(engine, sources)
    for note in vendor.notes:
        yield from wrapped("  -", note, 4)


def _engine(engine: EngineSupport, sources: Sources) -> Iterator[str]:
    """Repository and version, then dated statements of what works and what does not."""
    dated = f", {engine.date}" if engine.date else ""
    origin = f" ({engine.evidence} {sources.cite(engine.source)}{dated})" if engine.evidence != "unknown" else ""
    text = joined(engine.repository if engine.repository != "unknown" else "?", engine.register, engine.version)
    yield from wrapped(f"  {engine.engine}", text + origin, INDENT)
    for mark, statements in (("works: ", engine.works), ("mind: ", engine.breaks)):
        for statement in statements:
            yield from wrapped("", f"{mark}{statement}", INDENT)


def shared_names(catalog: Catalog, vendor: str) -> Iterator[str]:
    """Names of this vendor's that others use too, and what tells them apart."""
    shared = [c for c in catalog.collisions if any(owner.vendor == vendor for owner in c.owners)]
    if not shared:
        return
    yield ""
    yield "Names shared with others"
    for collision in shared:
        others = ", ".join(f"{owner.vendor} ({owner.meaning})" for owner in collision.owners if owner.vendor != vendor)
        yield from wrapped("  -", f"{collision.name}: also {others}. To tell: {collision.tell}.", 4)
