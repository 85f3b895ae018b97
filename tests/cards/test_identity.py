"""Whose cards these are, where a device type and a tool's name do not say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cards.recordings import recordings
from tests.cards.scripted import bus, software

from twinline.cards.identity import INSTALLED, printed_by, sightings, signs, vendor_of
from twinline.facts.chips import load

# The seven stacks that call themselves by one device type, and a wheel or module of each.
SEVEN = {
    "nvidia": software("2.9.0+cu129", fields=["cuda"]),
    "amd": software("2.9.0+rocm6.4", fields=["hip"]),
    "hygon": software("2.5.1+das.opt1.dtk25041", fields=["hip"]),
    "metax": software("2.8.0+metax3.3.0.2", fields=["cuda"]),
    "iluvatar": software("2.4.1+corex.4.3.0", fields=["cuda"]),
    "t-head": software("2.9.0+ppu2.1", fields=["cuda"]),
    "kunlunxin": software("2.9.0+cu129", modules=["torch_xmlir"], fields=["cuda"]),
}


@pytest.mark.parametrize("vendor", SEVEN)
def test_seven_stacks_of_one_device_type_are_told_apart(vendor: str) -> None:
    found = vendor_of("cuda", signs((), SEVEN[vendor]))
    assert found is not None and found.vendor == vendor


def test_the_bus_goes_before_the_wheel(tmp_path: Path) -> None:
    seen = sightings(bus(tmp_path, ("0000:0e:00.0", "9999", "4000", "120000")))
    found = signs(seen, SEVEN["nvidia"])
    assert [(sign.vendor, sign.by) for sign in found] == [("metax", "pci"), ("nvidia", "torch.version")]
    owner = vendor_of("cuda", found)
    assert owner is not None and owner.vendor == "metax"


def test_two_vendors_on_the_bus_are_no_answer(tmp_path: Path) -> None:
    seen = sightings(bus(tmp_path, ("0000:01:00.0", "10de", "2330", "030200"), ("0000:02:00.0", "9999", "1", "120000")))
    assert vendor_of("cuda", signs(seen, software())) is None
    assert vendor_of("npu", signs(seen, software(modules=["torch_npu"]))) is not None
    assert vendor_of("cuda", signs((), software())) is None


def test_what_else_carries_a_vendors_id_is_no_card(tmp_path: Path) -> None:
    root = bus(
        tmp_path,
        ("0000:00:00.0", "1d94", "1450", "060000"),  # a host bridge
        ("0000:01:00.0", "1d94", "6210", "0b4000"),  # a co-processor
        ("0000:02:00.0", "19e5", "0200", "020000"),  # a network card
        ("0000:03:00.0", "19e5", "d802", "120000"),
        ("0000:04:00.1", "10de", "22a3", "068000"),  # a switch between cards
        ("0000:05:00.0", "8086", "46a6", "030000"),  # the display of a processor
        ("0000:06:00.0", "beef", "0001", "120000"),
    )
    seen = sightings(root)
    assert [(one.vendor, one.name, one.sure) for one in seen] == [
        ("hygon", "K100_AI", True), ("huawei", "Ascend 910B", True), ("intel-xpu", None, False),
    ]  # fmt: skip
    assert [sign.vendor for sign in signs(seen, software())] == ["hygon", "huawei"]


def test_no_bus_is_no_sighting(tmp_path: Path) -> None:
    assert sightings(tmp_path / "absent") == ()


def test_nothing_is_imported_to_look() -> None:
    before = set(sys.modules)
    signs((), INSTALLED)
    assert not {name for name in set(sys.modules) - before if name.startswith(("torch", "habana"))}


@pytest.mark.parametrize(("tool", "identifier", "vendor"), [
    ("rocm-smi", "rocm-smi-json-hygon-24.04.3", "hygon"), ("rocm-smi", "rocm-smi-json-rx7800", "amd"),
    ("rocm-smi", "rocm-smi-table-mi", "amd"), ("rocm-smi", "rocm-smi-use-mem", "amd"),
    ("xpu-smi", "xpu-smi-table-p800", "kunlunxin"), ("xpu-smi", "xpu-smi-q-p800", "kunlunxin"),
    ("xpu-smi", "intel-xpu-smi-discovery", "intel-xpu"),
])  # fmt: skip
def test_an_output_says_whose_tool_it_is(tool: str, identifier: str, vendor: str) -> None:
    rivals = tuple(one.id for one in load().vendors.values() if any(t.name == tool for t in one.tools))
    assert len(rivals) == 2
    assert printed_by(tool, recordings()[identifier].text, rivals) == (vendor,)


def test_an_output_without_signs_could_be_anybodys() -> None:
    assert printed_by("rocm-smi", "error", ("amd", "hygon")) == ("amd", "hygon")
