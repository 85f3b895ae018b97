"""`twinline chips`: what is known of all chips, of one, or of several side by side.

Owns the choice of view and the overview. Must not know any chip: all names come from the catalog.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from twinline.cli.chips_compare import compare
from twinline.cli.chips_one import describe
from twinline.cli.chips_text import LEGEND, both, columns, computing, marked
from twinline.cli.chips_vendor import describe_vendor
from twinline.cli.parser import CliError
from twinline.facts.chips import Catalog, Chip, load
from twinline.facts.evidence import Support

MOST_BESIDE = 4  # as many columns as 120 characters hold


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chip", nargs="*", help="one: all that is known of it; several: side by side; none: all chips")
    parser.add_argument("--vendor", metavar="VENDOR", help="the chips of this vendor, and the software that they need")
    parser.add_argument("--json", action="store_true", help="for machines: every figure with its origin")


def run(args: argparse.Namespace) -> int:
    catalog = load()
    if args.vendor and args.chip:
        raise CliError("name chips or a --vendor, not both", code=2)
    if args.vendor is not None:
        args.vendor = args.vendor.strip().lower()
    if args.vendor is not None and args.vendor not in catalog.vendors:
        raise CliError(f"no vendor is called {args.vendor!r}; known are {', '.join(catalog.vendors)}")
    chosen = tuple(dict.fromkeys(catalog.find(name).id for name in args.chip))
    chips = [catalog.chips[one] for one in chosen] or list(
        catalog.of(args.vendor) if args.vendor else catalog.chips.values()
    )
    if args.json:
        print(json.dumps(_for_machines(catalog, chips, whole=not chosen), indent=2))
    elif len(chosen) == 1:
        print("\n".join(describe(catalog, chips[0])))
    elif chosen:
        if len(chosen) > MOST_BESIDE:
            raise CliError(
                f"{len(chosen)} chips do not fit side by side; name at most {MOST_BESIDE}, or use --json", code=2
            )
        print("\n".join(compare(chips)))
    else:
        print("\n".join(overview(catalog, chips)))
        if args.vendor:
            print("\n".join(("", *describe_vendor(catalog, catalog.vendors[args.vendor]))))
    return 0


def _for_machines(catalog: Catalog, chips: Sequence[Chip], whole: bool) -> dict[str, Any]:
    """The chips, their vendors and the shared names that concern these vendors, each figure with its origin."""
    vendors = {chip.vendor: catalog.vendors[chip.vendor] for chip in chips}
    shared = [c for c in catalog.collisions if any(owner.vendor in vendors for owner in c.owners)]
    return msgspec.to_builtins({"chips": chips, "vendors": list(vendors.values()), "collisions": shared})


def overview(catalog: Catalog, chips: Sequence[Chip]) -> Iterator[str]:
    """All chips, a line each, under their vendors. Two numbers are the declared and the measured one."""
    head = ["chip", "memory GB", "bandwidth GB/s", "bf16 TFLOPS", "fp8", "int8 TOPS", "watts"]
    body = [_row(chip) for chip in chips]
    lines = columns([head, *body])
    yield lines[0]
    vendor = ""
    for chip, line in zip(chips, lines[1:], strict=True):
        if chip.vendor != vendor:
            vendor = chip.vendor
            yield f"{catalog.vendors[vendor].name} ({vendor})"
        yield line
    yield ""
    yield LEGEND
    yield "yes and no: whether it computes in this precision, where no rate was found; other: in another encoding"
    yield "two numbers: declared, measured (reached by a program, so below a peak)"


def _row(chip: Chip) -> list[str]:
    return [
        chip.id,
        marked(chip.memory_gb),
        both(chip.bandwidth_gbs, chip.measured.get("bandwidth_gbs")),
        computing(chip, "bf16"),
        _answer(chip.precisions["fp8-e4m3"]),
        computing(chip, "int8"),
        marked(chip.watts),
    ]


def _answer(support: Support) -> str:
    return {"unknown": "?", "other-encoding": "other"}.get(support.answer, support.answer)
