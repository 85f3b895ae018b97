"""The catalog as it is shipped: every figure has an origin, names lead to chips, and known numbers are right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from twinline.facts.chip_files import DATA, figures
from twinline.facts.chips import PRECISIONS, Catalog, Chip, UnknownChip, load, plain
from twinline.facts.evidence import STRENGTH, Figure
from twinline.facts.plain_yaml import read_yaml

CHIPS = (
    "h200-sxm h100-sxm h800-sxm h20 a100-sxm-80 a800-sxm l40s l20 rtx4090 rtx4090d rtx5090 b200 b300 ascend-910b1 "
    "ascend-910b2 ascend-910b3 ascend-910b4 ascend-910b-family ascend-910c ascend-310p-duo ascend-950pr ascend-950dt "
    "metax-c500 metax-c550 metax-c600 metax-n260 mtt-s4000 mtt-s5000 biren-br100 biren-br104 biren-106 biren-166 "
    "kunlun-r200 kunlun-r300 kunlun-p800 hygon-k100ai hygon-bw1000 mlu370-x8 mlu590 bi-v100 bi-v150 mr-v100 "
    "enflame-s60 enflame-l300 mi300x mi325x gaudi2 gaudi3 ppu-zw810e".split()
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load()


def facts(value: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping that says how it is known, wherever it stands."""
    if isinstance(value, dict):
        if "how" in value or "evidence" in value:
            yield at, value
        for key, below in value.items():
            yield from facts(below, f"{at}.{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from facts(below, f"{at}[{index}]")


def test_every_vendor_and_chip_is_there(catalog: Catalog) -> None:
    assert set(catalog.vendors) == {file.stem for file in (DATA / "chips").iterdir()}
    assert set(CHIPS) <= set(catalog.chips)
    assert all(catalog.of(vendor) for vendor in catalog.vendors)
    assert all(chip.id == key and chip.vendor in catalog.vendors for key, chip in catalog.chips.items())


def test_no_fact_without_how_it_is_known_and_where_it_was_read(catalog: Catalog) -> None:
    found = list(facts(msgspec.to_builtins(catalog)))
    assert len(found) > 1500
    for at, fact in found:
        assert (fact.get("how") or fact.get("evidence")) in STRENGTH, at
        assert len(fact["source"].strip()) > 3, at


def test_a_figure_has_a_value_exactly_when_it_is_known(catalog: Catalog) -> None:
    for at, fact in facts(msgspec.to_builtins(catalog)):
        if "value" in fact:
            assert (fact["value"] is None) == (fact["how"] == "unknown"), at
    for chip in catalog.chips.values():
        for field, figure in figures(chip):
            assert not figure.faults(), (chip.id, field)


def test_every_chip_says_of_every_precision_whether_it_computes_in_it(catalog: Catalog) -> None:
    for chip in catalog.chips.values():
        assert set(chip.precisions) == set(chip.peaks) == set(PRECISIONS), chip.id
        for precision, support in chip.precisions.items():
            assert not support.faults(), (chip.id, precision)


def test_every_vendor_can_be_recognised_or_says_that_it_is_not_known_how(catalog: Catalog) -> None:
    for vendor in catalog.vendors.values():
        assert vendor.tools and all(tool.commands for tool in vendor.tools), vendor.id
        markers = msgspec.to_builtins(vendor.pytorch.markers)
        assert any(markers.values()) and vendor.pytorch.detect, vendor.id
        assert vendor.pci_ids or vendor.pci.evidence == "unknown" or vendor.id == "cpu", vendor.id
        assert vendor.engines and vendor.visible.process, vendor.id


KNOWN = [
    ("h100-sxm", "memory_gb", 80, "vendor"),
    ("h100-sxm", "bandwidth_gbs", 3350, "vendor"),
    ("h100-sxm", "peaks.bf16", 989, "vendor"),
    ("h100-sxm", "link_gbs", 900, "vendor"),
    ("h200-sxm", "memory_gb", 141, "vendor"),
    ("h200-sxm", "measured.memory_mib", 143771, "measured"),
    ("h20", "peaks.bf16", 148, "press"),
    ("h20", "memory_gb", 96, "press"),
    ("h20", "bandwidth_gbs", 4000, "press"),
    ("a100-sxm-80", "peaks.int8", 624, "vendor"),
    ("a100-sxm-80", "peaks.fp8-e4m3", None, "unknown"),
    ("b200", "peaks.fp4", 9000, "vendor"),
    ("b300", "peaks.int8", 153.5, "vendor"),
    ("ascend-910b3", "memory_gb", 64, "measured"),
    ("ascend-910b2", "measured.compute_units", 24, "measured"),
    ("ascend-910c", "memory_gb", 128, "vendor"),
    ("ascend-910c", "domain.cards", 384, "paper"),
    ("ascend-310p-duo", "measured.memory_mib", 44280 + 43693, "measured"),
    ("metax-c550", "measured.bandwidth_gbs", 1390.5, "measured"),
    ("mtt-s5000", "memory_gb", 80, "measured"),
    ("kunlun-p800", "memory_gb", 96, "measured"),
    ("kunlun-p800", "bandwidth_gbs", None, "unknown"),
    ("kunlun-p800", "measured.bf16_tflops", 109, "measured"),
    ("hygon-k100ai", "measured.memory_mib", 65520, "measured"),
    ("mlu370-x8", "bandwidth_gbs", 614.4, "vendor"),
    ("mlu370-x8", "measured.memory_mib", 2 * 23374, "measured"),
    ("bi-v150", "measured.fp16_tflops", 196.5, "measured"),
    ("mi300x", "peaks.bf16", 1307.4, "press"),
    ("gaudi3", "peaks.bf16", 1678, "vendor"),
    ("ppu-zw810e", "cards_per_node", 16, "measured"),
    ("metax-n260", "memory_gb", None, "unknown"),
    ("biren-106", "memory_gb", None, "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("chip", "field", "value", "how"), KNOWN)
def test_known_numbers(catalog: Catalog, chip: str, field: str, value: float | None, how: str) -> None:
    figure = dict(figures(catalog.chips[chip]))[field]
    assert (figure.value, figure.how) == (value, how)


@pytest.mark.parametrize(
    ("chip", "precision", "answer"),
    [
        ("h800-sxm", "fp8-e4m3", "yes"), ("a100-sxm-80", "fp8-e4m3", "no"), ("a800-sxm", "fp8-e4m3", "no"),
        ("ascend-910b3", "fp8-e4m3", "no"), ("ascend-910c", "fp8-e4m3", "no"), ("ascend-950pr", "fp8-e4m3", "yes"),
        ("kunlun-p800", "fp8-e4m3", "no"), ("metax-c500", "fp8-e4m3", "no"), ("mtt-s4000", "fp8-e4m3", "no"),
        ("mtt-s5000", "fp8-e4m3", "yes"), ("enflame-s60", "fp8-e4m3", "no"), ("mlu370-x8", "fp8-e4m3", "no"),
        ("mi300x", "fp8-e4m3", "other-encoding"), ("gaudi2", "fp8-e4m3", "other-encoding"),
        ("ascend-310p-duo", "bf16", "no"), ("v100-32", "bf16", "no"),
        ("kunlun-p800", "bf16", "yes"), ("b200", "fp4", "yes"), ("h200-sxm", "fp4", "no"),
        ("mlu590", "bf16", "unknown"), ("biren-br100", "fp8-e4m3", "unknown"),
    ],
)  # fmt: skip
def test_known_precisions(catalog: Catalog, chip: str, precision: Any, answer: str) -> None:
    assert catalog.chips[chip].precisions[precision].answer == answer


def test_measured_beats_declared(catalog: Catalog) -> None:
    family = catalog.chips["ascend-910b-family"]
    assert (family.rate("bf16").value, family.rate("bf16").how) == (304.3, "measured")
    assert family.rate("int8").value == 608.6
    assert catalog.chips["h100-sxm"].rate("bf16") == catalog.chips["h100-sxm"].peaks["bf16"]
    assert not catalog.chips["mlu590"].rate("bf16").known


def test_bytes_are_the_drivers_where_somebody_read_them(catalog: Catalog) -> None:
    assert catalog.chips["h100-sxm"].memory_bytes().value == 81559 * 2**20
    sold = catalog.chips["a100-sxm-80"].memory_bytes()
    assert (sold.value, sold.how) == (80 * 2**30, "vendor") and "as sold" in sold.note
    assert not catalog.chips["biren-106"].memory_bytes().known
    for chip in catalog.chips.values():
        seen, sold = chip.measured.get("memory_mib"), chip.memory_gb
        if seen and seen.value and sold.value:  # what a driver shows is never more than was sold, nor much less
            assert 0.87 <= seen.value / (sold.value * 1024) <= 1.0, chip.id


def test_what_sources_disagree_on_is_shown(catalog: Catalog) -> None:
    gaudi = catalog.chips["gaudi3"].peaks["bf16"]
    assert gaudi.disputed and {gaudi.value, *(other.value for other in gaudi.others)} == {1678, 1835}
    fp16 = catalog.chips["ascend-910b-family"].peaks["fp16"]
    assert {280, 313, 320, 376} == {fp16.value, *(other.value for other in fp16.others)}
    assert not Figure(3.0, "vendor", "x", "", (Figure(3.0, "press", "y"),)).disputed


def test_the_right_checkpoint_comes_first(catalog: Catalog) -> None:
    first = {chip.id: chip.weights[0] for chip in catalog.chips.values() if chip.weights}
    assert {one.verdict for one in first.values()} == {"use"}
    for chip, form in [("h800-sxm", "FP8"), ("a100-sxm-80", "INT8"), ("ascend-910b3", "W8A8"), ("kunlun-p800", "W8A8"),
                       ("b300", "NVFP4"), ("enflame-s60", "W4A16 AWQ"), ("mi300x", "FP8 re-encoded")]:  # fmt: skip
        assert first[chip].form.startswith(form), chip
    wrong = {one.form: one.verdict for one in catalog.chips["b300"].weights}
    assert wrong["INT8 W8A8"] == "avoid"


@pytest.mark.parametrize(
    ("spelt", "chip"),
    [
        ("H100", "h100-sxm"), ("nvidia-h800", "h800-sxm"), ("Ascend 910B3", "ascend-910b3"), ("910c", "ascend-910c"),
        ("ASCEND_910B3", "ascend-910b3"), ("mi300", "mi300x"), ("p800", "kunlun-p800"), ("zen4", "cpu-zen4"),
        ("MTT S5000", "mtt-s5000"), ("910B", "ascend-910b-family"), ("h20-96", "h20"),
    ],
)  # fmt: skip
def test_a_chip_is_found_however_it_is_spelt(catalog: Catalog, spelt: str, chip: str) -> None:
    assert catalog.find(spelt).id == chip


def test_every_name_leads_to_its_chip(catalog: Catalog) -> None:
    for chip in catalog.chips.values():
        assert all(catalog.find(name) is chip for name in chip.names)
        assert all(catalog.printed(chip.vendor, shown) is chip for shown in chip.prints)


@pytest.mark.parametrize(("spelt", "near"), [("h10", "h100-sxm"), ("910D", "ascend-910c"), ("s500", "mtt-s5000")])
def test_an_unknown_chip_is_refused_with_near_misses(catalog: Catalog, spelt: str, near: str) -> None:
    with pytest.raises(UnknownChip, match=near):
        catalog.find(spelt)


@pytest.mark.parametrize("spelt", ["", "-", "zzzz", "卡"])
def test_what_is_like_nothing_gets_no_guess(catalog: Catalog, spelt: str) -> None:
    with pytest.raises(UnknownChip, match="lists them all"):
        catalog.find(spelt)


PRINTED = [
    # as recorded from the tools (the sources are in the files of the vendors)
    ("nvidia", "NVIDIA H100 80GB HBM3", "h100-sxm"), ("nvidia", "NVIDIA H200", "h200-sxm"),
    ("nvidia", "NVIDIA GeForce RTX 4090 D", "rtx4090d"), ("nvidia", "NVIDIA GeForce RTX 5090 D", "rtx5090d"),
    ("huawei", "910B2", "ascend-910b2"), ("huawei", "910B2C", "ascend-910b2"), ("huawei", "Ascend910", "ascend-910c"),
    ("huawei", "910A", "ascend-910a"), ("huawei", "310P3", "ascend-310p-duo"), ("huawei", "Ascend 910A", "ascend-910a"),
    ("metax", "MetaX C500", "metax-c500"), ("metax", "MXC500", "metax-c500"),
    ("moorethreads", "MTT S5000", "mtt-s5000"), ("moorethreads", "MTT S4000", "mtt-s4000"),
    ("kunlunxin", "P800 OAM", "kunlun-p800"), ("kunlunxin", "P800 PCIe", "kunlun-p800"),
    ("hygon", "K100_AI", "hygon-k100ai"), ("hygon", "BW1000", "hygon-bw1000"),
    ("cambricon", "MLU370-X8", "mlu370-x8"), ("cambricon", "MLU590-M9DG", "mlu590"),
    ("iluvatar", "Iluvatar BI-V100", "bi-v100"), ("iluvatar", "Iluvatar MR-V100", "mr-v100"),
    ("enflame", "Enflame L300", "enflame-l300"), ("enflame", "S60", "enflame-s60"),
    ("t-head", "PPU-ZW810E", "ppu-zw810e"), ("amd", "AMD Instinct MI300X OAM", "mi300x"), ("amd", "MI300X", "mi300x"),
    ("intel-gaudi", "HL-225", "gaudi2"), ("intel-gaudi", "HL-325", "gaudi3"),
    ("intel-xpu", "Intel(R) Data Center GPU Max 1100", "max-1100"),
    ("nvidia", "Ascend910", None), ("huawei", "Ascend xxx", None), ("nvidia", "", None), ("nobody", "MI300X", None),
]  # fmt: skip


@pytest.mark.parametrize(("vendor", "text", "chip"), PRINTED)
def test_what_a_tool_prints_leads_to_the_chip(catalog: Catalog, vendor: str, text: str, chip: str | None) -> None:
    found = catalog.printed(vendor, text)
    assert (found.id if found else None) == chip


def test_names_that_vendors_share_are_told(catalog: Catalog) -> None:
    """Whatever two vendors call the same is in the collisions, with exactly its owners."""
    owners = {c.name: {owner.vendor for owner in c.owners} for c in catalog.collisions}
    vendors = catalog.vendors.values()
    assert owners["device type cuda"] == {v.id for v in vendors if v.pytorch.device == "cuda"}
    assert owners["torch.distributed backend nccl"] == {v.id for v in vendors if v.collective.backend == "nccl"}
    assert owners["HCCL"] == {v.id for v in vendors if v.collective.backend == "hccl"}
    tools: dict[str, list[str]] = {}
    for vendor in vendors:
        for tool in vendor.tools:
            tools.setdefault(tool.name, []).append(vendor.id)
    shared = {name: set(ids) for name, ids in tools.items() if len(ids) > 1}
    assert shared and all(owners[name] == ids for name, ids in shared.items())
    assert all(len(c.owners) > 1 and c.tell for c in catalog.collisions)


def test_tools_of_one_name_are_told_apart_by_their_output(catalog: Catalog) -> None:
    signs: dict[str, list[set[str]]] = {}
    for vendor in catalog.vendors.values():
        for tool in vendor.tools:
            signs.setdefault(tool.name, []).append(set(tool.signs))
    for name, sets in signs.items():
        if len(sets) > 1:
            assert all(sets) and not set.intersection(*sets), name


def test_pci_ids_belong_to_one_vendor(catalog: Catalog) -> None:
    ids = [pci for vendor in catalog.vendors.values() for pci in vendor.pci_ids]
    assert len(ids) == len(set(ids)) >= 13


def names_of_sources(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            if key == "source":
                yield from below if isinstance(below, list) else [below]
            else:
                yield from names_of_sources(below)
    elif isinstance(value, list):
        for below in value:
            yield from names_of_sources(below)


def test_every_source_is_used() -> None:
    files = {file: read_yaml(file) for file in [*(DATA / "chips").glob("*.yaml"), DATA / "collisions.yaml"]}
    everywhere = {name for content in files.values() for name in names_of_sources(content)}
    assert set(read_yaml(DATA / "sources.yaml")) <= everywhere
    for file, content in files.items():
        own = content.get("sources") or {}
        used = set(names_of_sources({key: value for key, value in content.items() if key != "sources"}))
        assert not set(own) - used, file.name


def test_sources_can_be_read_by_others() -> None:
    """No path of a machine, no key of a private index, and plain letters for who cannot read the original."""
    for file in [*(DATA / "chips").glob("*.yaml"), DATA / "sources.yaml", DATA / "collisions.yaml"]:
        text = file.read_text("utf-8")
        assert "idx:" not in text and "/home/" not in text and "/tmp/" not in text, file.name
        assert text.isascii(), file.name


def test_plain_spelling() -> None:
    assert plain("Ascend 910-B3") == plain("ascend_910b3") == "ascend910b3"


def test_no_chip_shares_a_spelling(catalog: Catalog) -> None:
    def spelt(chip: Chip) -> set[str]:
        return {plain(name) for name in chip.names}

    every = [name for chip in catalog.chips.values() for name in spelt(chip)]
    assert len(every) == len(set(every))
