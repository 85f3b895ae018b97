"""What the catalog's files may not say: each fault is refused with file and field."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from twinline.facts.chip_files import MEASURED, CatalogError, read_catalog
from twinline.facts.chips import PRECISIONS, Chip
from twinline.facts.evidence import STRENGTH, Figure, Support
from twinline.facts.plain_yaml import NotPlain, read_yaml

VENDOR = """\
sources: {own: "a data sheet"}
vendor:
  id: acme
  name: Acme
  pci: {ids: ["1a2b"], evidence: vendor, source: own}
  pytorch:
    {package: torch + torch_acme, import_name: torch_acme, device: acme, cuda_api: none, accelerator: unknown,
     autoload: none, detect: import torch_acme, markers: {modules: [torch_acme]}, evidence: vendor, source: own}
  collective: {backend: accl, library: ACCL, evidence: vendor, source: own}
  visible: {container: ACME_DEVICES, process: ACME_DEVICES, evidence: vendor, source: own}
  tools:
    - {name: acme-smi, commands: [acme-smi], evidence: vendor, source: own}
  triton: none
  graphs: none
  precision: unknown
  container: none
  kubernetes: none
  ray: none
  engines: []
chips:
  - id: acme-1
    name: Acme One
    aliases: [one]
    prints: [ACME 1]
    memory_gb: {value: 64, how: vendor, source: own}
    bandwidth_gbs: {value: 1000, how: vendor, source: [own, shared]}
    peaks:
      bf16: {value: 200, how: vendor, source: own, others: [{value: 250, how: press, source: shared}]}
    precisions:
      - {answer: yes, for: [bf16, fp16], evidence: vendor, source: own}
      - {answer: no, for: [fp8-e4m3], evidence: vendor, source: own}
      - {answer: unknown, for: [fp64, fp32, tf32, int8, int4, fp4]}
    link_gbs: unknown
    domain: {link: none, cards: {how: unknown, note: not told}}
    cards_per_node: unknown
    watts: unknown
    measured: {bandwidth_gbs: {value: 900, how: measured, source: shared}}
    weights:
      - {form: BF16, verdict: use, computes: bf16, why: native, evidence: vendor, source: own}
    price:
      - {kind: cloud, low: 1, high: 2, currency: USD, unit: card-hour, date: "2026", how: press, source: shared}
"""
SHARED = 'shared: "a table"\n'
COLLISIONS = "collisions: []\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chips").mkdir()
    (tmp_path / "sources.yaml").write_text(SHARED)
    (tmp_path / "collisions.yaml").write_text(COLLISIONS)
    (tmp_path / "chips" / "acme.yaml").write_text(VENDOR)
    return tmp_path


def test_one_file_is_one_vendor_and_its_chips(folder: Path) -> None:
    catalog = read_catalog(folder)
    chip = catalog.find("one")
    assert (chip.id, chip.vendor, catalog.vendors["acme"].pci_ids) == ("acme-1", "acme", ("1a2b",))
    assert chip.bandwidth_gbs == Figure(1000.0, "vendor", "a data sheet; a table")
    assert chip.peaks["bf16"].others == (Figure(250.0, "press", "a table"),) and chip.peaks["bf16"].disputed
    assert not chip.peaks["fp16"].known and chip.precisions["fp16"].answer == "yes"
    assert chip.precisions["fp8-e4m3"] == Support("no", "vendor", "a data sheet")
    assert (chip.watts.value, chip.watts.how) == (None, "unknown")
    assert (chip.domain.cards.value, chip.domain.cards.note) == (None, "not told")
    assert catalog.printed("acme", "acme-1") is chip


def replacing(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert text.count(old) == 1, old
        return text.replace(old, new)

    return edit


MEMORY = "memory_gb: {value: 64, how: vendor, source: own}"
NAME = "    name: Acme One\n"
BF16 = "for: [bf16, fp16]"
SOURCES = 'sources: {own: "a data sheet"}'


def memory(figure: str) -> Callable[[str], str]:
    return replacing(MEMORY, f"memory_gb: {figure}")


FAULTS = [
    # (what is written instead, what the refusal says)
    (memory("{value: 64, how: rumour, source: own}"), "chips.acme-1.memory_gb.how.*rumour"),
    (memory("{value: big, how: vendor, source: own}"), "chips.acme-1.memory_gb.value.*str"),
    (memory("{value: 64, how: vendor}"), "chips.acme-1.memory_gb.*source"),
    (memory("{value: 64, how: vendor, source: elsewhere}"), "memory_gb.source: 'elsewhere' stands"),
    (memory("{value: 64, how: vendor, source: []}"), "memory_gb: source is missing"),
    (memory("{value: 64, how: unknown, source: own}"), "memory_gb: a figure is unknown, or it has"),
    (memory("{value: null, how: vendor, source: own}"), "memory_gb: a figure is unknown, or it has"),
    (memory("{value: -64, how: vendor, source: own}"), "memory_gb: value should be above 0"),
    (memory("{value: 64, how: vendor, source: own, sorce: x}"), "memory_gb.*unknown field `sorce`"),
    (memory("64"), "chips.acme-1.memory_gb.*int"),
    (replacing(f"    {MEMORY}\n", ""), "chips.acme-1.*missing required field `memory_gb`"),
    (replacing("    watts: unknown\n", ""), "chips.acme-1.*missing required field `watts`"),
    (replacing("bf16: {value: 200,", "bf17: {value: 200,"), "chips.acme-1.peaks.*bf17"),
    (replacing("bf16: {value: 200,", "bf16: {value: fast,"), "chips.acme-1.peaks.bf16.value.*str"),
    (replacing("bf16: {value: 200,", "fp8-e4m3: {value: 200,"), "peaks.fp8-e4m3: has a rate, but precisions say no"),
    (replacing("bf16: {value: 200,", "int8: {value: 200,"), "peaks.int8: has a rate, but precisions say unknown"),
    (replacing("{value: 250, how: press,", "{value: 250, how: measured,"), "250 is measured, stronger than vendor"),
    (replacing("{value: 250, how: press,", "{value: 150, how: vendor,"), "150 is as strong and lower"),
    (replacing(BF16, "for: [bf16]"), "precisions: fp16 missing"),
    (replacing(BF16, "for: [bf16, fp16, fp32]"), "precisions.fp32: told twice"),
    (replacing(BF16, "for: [bf16, fp16, fp9]"), "chips.acme-1.precisions.*fp9"),
    (replacing("{answer: yes, for", "{answer: maybe, for"), "chips.acme-1.precisions.bf16.answer.*maybe"),
    (replacing(f"{BF16}, evidence: vendor", f"{BF16}, evidence: unknown"), "an answer is unknown, or"),
    (replacing(BF16, "only: [bf16, fp16]"), "precisions: should be a list of groups"),
    (replacing("{bandwidth_gbs: {value: 900,", "{bandwidth: {value: 900,"), "measured.bandwidth: unknown; known are"),
    (replacing("{value: 900, how: measured", "{value: 900, how: estimate"), "measured.bandwidth_gbs.how: should be"),
    (replacing("computes: bf16", "computes: fp8-e4m3"), "weights.0.: cannot be used"),
    (replacing("low: 1, high: 2", "low: 2, high: 1"), "price.0.: 2 to 1 is no range"),
    (replacing("kind: cloud", "kind: gift"), "chips.acme-1.price.0..kind.*gift"),
    (replacing("id: acme-1", "id: Acme_1"), "id: 'Acme_1' should be lower-case"),
    (replacing(NAME, f"{NAME}    devices_per_card: 0\n"), "devices_per_card: should be at least 1"),
    (replacing(NAME, f"{NAME}    vendor: other\n"), "chips.acme-1.vendor: the file says it"),
    (replacing("  id: acme\n", "  id: other\n"), "vendor.id: should be acme"),
    (replacing('["1a2b"]', '["1A2B"]'), "is not four lower-case hex digits"),
    (replacing('["1a2b"]', "[1002]"), "vendor.pci.ids.0..*int"),
    (replacing("  triton: none\n", ""), "vendor.*missing required field `triton`"),
    (replacing(NAME, f"{NAME}    name: Acme Two\n"), "line 23: name is given twice"),
    (replacing(NAME, "    name: [Acme\n"), "line"),
    (replacing(SOURCES, 'sources: {own: "one; two"}'), "sources.own: should be text without"),
    (replacing(SOURCES, 'sources: {own: "x", shared: "y"}'), "sources.shared: sources.yaml has it"),
    (lambda text: text[: text.index("chips:\n")], "chips: should be a list of at least one chip"),
    (lambda text: text + "extra: 1\n", "extra: unknown; a file holds"),
    (lambda text: "[]\n", "should be a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "refusal"), FAULTS, ids=[refusal[:40] for _, refusal in FAULTS])
def test_a_fault_is_refused_with_file_and_field(folder: Path, edit: Callable[[str], str], refusal: str) -> None:
    (folder / "chips" / "acme.yaml").write_text(edit(VENDOR))
    with pytest.raises(CatalogError, match=f"^acme.yaml: .*{refusal}") as caught:
        read_catalog(folder)
    assert "\n" not in str(caught.value)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside a value."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*way, key)
        yield from places(below, (*way, key))


def test_whatever_stands_in_a_place_it_is_read_or_refused(folder: Path) -> None:
    """Every value of the file replaced by things of other kinds: no other error than the refusal, in one line."""
    file = folder / "chips" / "acme.yaml"
    sound = read_yaml(file)
    refused = 0
    for way in places(sound):
        for junk in (None, True, 7, -1.5, "x", [], {}, [[]], [{}], {"value": []}):
            broken = copy.deepcopy(sound)
            inner = broken
            for key in way[:-1]:
                inner = inner[key]
            inner[way[-1]] = junk
            file.write_text(json.dumps(broken))  # JSON is YAML
            text = refusal_of(folder)
            refused += text is not None
            assert text is None or (text.startswith("acme.yaml: ") and "\n" not in text), (way, junk)
    assert refused > 500


def refusal_of(folder: Path) -> str | None:
    try:
        read_catalog(folder)
    except CatalogError as error:
        return str(error)
    return None


def second(folder: Path, vendor: str = "zeta", chip: str = "zeta-1", name: str = "Zeta One") -> None:
    text = VENDOR.replace("id: acme\n", f"id: {vendor}\n").replace("id: acme-1", f"id: {chip}")
    text = text.replace("name: Acme One", f"name: {name}").replace("aliases: [one]", "aliases: []")
    (folder / "chips" / f"{vendor}.yaml").write_text(text)


def test_two_vendors_may_print_the_same(folder: Path) -> None:
    second(folder)
    catalog = read_catalog(folder)
    assert [catalog.printed(vendor, "ACME 1").id for vendor in ("acme", "zeta")] == ["acme-1", "zeta-1"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("chip", "name", "refusal"),
    [
        ("acme-1", "Zeta One", "acme.yaml has a chip of this id"),
        ("zeta-1", "ACME-ONE", "'ACME-ONE' is a name of acme-1 too"),
        ("one", "Zeta One", "'one' is a name of acme-1 too"),
    ],
)
def test_a_name_leads_to_one_chip(folder: Path, chip: str, name: str, refusal: str) -> None:
    second(folder, chip=chip, name=name)
    with pytest.raises(CatalogError, match=refusal):
        read_catalog(folder)


def test_a_shared_name_needs_vendors_of_the_catalog(folder: Path) -> None:
    (folder / "collisions.yaml").write_text(
        "collisions:\n  - {name: x, owners: [{vendor: nobody, meaning: y}], tell: z, source: shared}\n"
    )
    with pytest.raises(CatalogError, match=r"collisions.yaml: collisions\[0\].owners: 'nobody'"):
        read_catalog(folder)


@pytest.mark.parametrize("missing", ["sources.yaml", "collisions.yaml"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CatalogError, match=f"^{missing}: "):
        read_catalog(folder)


def test_plain_yaml_reads_words_as_words(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "{a: yes, b: no, c: 2026-08-21, d: 1e36, e: 10de, f: 0x10, g: 1_000, h: 1.5e3, i: 60:30, j: -2, k: on}"
    )
    read = read_yaml(file)
    assert read == {
        "a": "yes", "b": "no", "c": "2026-08-21", "d": 1e36, "e": "10de", "f": "0x10", "g": "1_000", "h": 1500.0,
        "i": "60:30", "j": -2, "k": "on",
    }  # fmt: skip
    file.write_text("a: true\nb: null\nc: ~\nd:\n")
    assert read_yaml(file) == {"a": True, "b": None, "c": None, "d": None}


@pytest.mark.parametrize("text", ["1: a", "a: 1\nb: 2\na: 3", "a: [", "!!python/object:os.system {}", "a: *nowhere"])
def test_plain_yaml_refuses_with_the_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(NotPlain, match=r"^line \d"):
        read_yaml(file)


DOC = (Path(__file__).parents[2] / "docs" / "chips.md").read_text("utf-8")


def test_the_guides_entry_is_a_chip(folder: Path) -> None:
    """The example of docs/chips.md, as it stands, in a vendor's file."""
    (entry,) = re.findall(r"```yaml\n(chips:\n.*?)```", DOC, re.DOTALL)
    sources = 'sources: {own: "x", data-sheet: "Acme One, data sheet, 2026-05", news: "news", acme-smi: "acme-smi"}'
    text = VENDOR.replace(SOURCES, sources)
    (folder / "chips" / "acme.yaml").write_text(text[: text.index("chips:\n")] + entry)
    chip = read_catalog(folder).find("acme-1")
    assert chip.bandwidth_gbs.others[0].value == 1200 and chip.watts.how == "measured"
    assert [chip.precisions[p].answer for p in ("bf16", "fp4", "int4")] == ["yes", "no", "unknown"]


def test_the_guide_tells_every_field() -> None:
    rows = {name for row in re.findall(r"^\| (`.*?) \|", DOC, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert set(Chip.__struct_fields__) - {"vendor"} <= rows
    for name in MEASURED - {f"{p.replace('-', '_')}_{'tops' if p.startswith('int') else 'tflops'}" for p in PRECISIONS}:
        assert f"`{name}`" in DOC
    assert set(STRENGTH) <= rows
