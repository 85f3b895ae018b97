"""`twinline chips`: the overview, one chip, several side by side, and the same for machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinline.cli import main
from twinline.cli.chips_text import MARKS, both, columns, computing, marked, number, wrapped
from twinline.facts.chips import load
from twinline.facts.evidence import Figure, unknown

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: str) -> str:
    assert main(["chips", *arguments]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 120
    assert not any(line != line.rstrip() for line in out.splitlines())
    return out


def refused(capsys: Capture, code: int, *arguments: str) -> str:
    assert main(["chips", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_overview_has_every_chip_under_its_vendor(capsys: Capture) -> None:
    lines = said(capsys).splitlines()
    catalog, vendor = load(), ""
    shown: dict[str, str] = {}
    for line in lines[1:]:
        if not line:
            break
        if line.startswith("  "):
            shown[line.split()[0]] = vendor
        else:
            vendor = line.rpartition("(")[2].rstrip(")")
    assert shown == {chip.id: chip.vendor for chip in catalog.chips.values()}
    for word in ("memory GB", "bandwidth GB/s", "bf16 TFLOPS", "fp8", "int8 TOPS", "watts"):
        assert word in lines[0]


def test_a_number_never_stands_without_its_mark(capsys: Capture) -> None:
    rows = [line.split() for line in said(capsys).splitlines()[1:] if line.startswith("  ")]
    for row in rows:
        for at, word in enumerate(row[1:], 1):
            if word[0].isdigit():
                assert row[at + 1].rstrip(",*") in set(MARKS.values()) - {""}, row


def test_the_overview_tells_what_cannot_be_computed(capsys: Capture) -> None:
    rows = {line.split()[0]: line for line in said(capsys).splitlines() if line.startswith("  ")}
    assert rows["h100-sxm"].split()[1:] == "80 v 3,350 v 989 v yes 1,978 v 700 m".split()
    assert rows["ascend-310p-duo"].split()[1:] == "96 e ? no v no yes v ?".split()
    assert rows["metax-n260"].split()[1:] == ["?"] * 6
    assert rows["kunlun-p800"].split()[1:] == "96 m ? 109 m no 690 n* 400 m".split()
    assert "1,800 n, 1,390.5 m*" in rows["metax-c550"]


def test_one_chip_with_the_origin_of_every_figure(capsys: Capture) -> None:
    out, chip = said(capsys, "910C"), load().chips["ascend-910c"]
    flat = " ".join(out.split())
    assert out.startswith("Ascend 910C (A3 card, 2 dies) (ascend-910c), Huawei Ascend\n")
    for figure in (chip.memory_gb, chip.bandwidth_gbs, chip.link_gbs, *chip.measured.values(), chip.peaks["fp16"]):
        assert number(figure.value or 0) in out
        for source in figure.source.split("; "):
            assert source in flat
    assert "elsewhere 1,600 (press [3])" in flat  # the bandwidth that another source gives
    assert "impossible FP8 (the published checkpoint)" in flat and "W8A8 INT8" in out
    assert "HCCL: also intel-gaudi" in flat and "npu-smi info" in out


def test_every_citation_has_its_source(capsys: Capture) -> None:
    for chip in load().chips:
        page, _, sources = said(capsys, chip).rpartition("\nSources\n")
        listed = {line.split("]")[0].strip(" [") for line in sources.splitlines() if line.startswith("  [")}
        cited = {
            number for part in page.split("[")[1:] for number in part.partition("]")[0].split() if number.isdigit()
        }
        assert cited == listed and listed, chip


def test_what_is_unknown_is_said_to_be(capsys: Capture) -> None:
    out = said(capsys, "metax-n260")
    assert out.count("unknown") >= 5 and "memory" in out
    assert "Measured" not in out and "Prices" not in out and "Which checkpoint" not in out


def test_several_side_by_side(capsys: Capture) -> None:
    lines = said(capsys, "h800", "910c", "p800", "s5000").splitlines()
    rows = {line[:22].strip(): line[22:] for line in reversed(lines) if line[:22].strip()}
    assert lines[0].split() == ["h800-sxm", "ascend-910c", "kunlun-p800", "mtt-s5000"]
    assert rows["memory GB"].split() == "80 n 128 v 96 m 80 m".split()
    assert rows["fp8-e4m3"].split() == "1,979 n no v no v 920 n*".split()
    assert rows["bf16 TFLOPS a watt"].split() == "1.41 e ? 0.27 e 0.80 e".split()


def test_a_chip_named_twice_is_shown_once(capsys: Capture) -> None:
    assert said(capsys, "H100", "h100-sxm").startswith("H100 SXM (h100-sxm), NVIDIA\n")


def test_a_vendor_with_its_software(capsys: Capture) -> None:
    out = said(capsys, "--vendor", "biren")
    assert "biren-106" in out and "h100-sxm" not in out
    assert "Software of Biren" in out and "brsmi" in out and "torch_br" in out


def test_for_machines(capsys: Capture) -> None:
    told = json.loads(said_json(capsys))
    assert len(told["chips"]) == len(load().chips) and len(told["vendors"]) == len(load().vendors)
    one = json.loads(said_json(capsys, "h20", "910b3"))
    assert [chip["id"] for chip in one["chips"]] == ["h20", "ascend-910b3"]
    assert [vendor["id"] for vendor in one["vendors"]] == ["nvidia", "huawei"]
    memory = one["chips"][0]["memory_gb"]
    assert (memory["value"], memory["how"]) == (96, "press") and memory["source"]
    assert one["chips"][0]["peaks"]["fp4"]["value"] is None
    shared = {collision["name"] for collision in one["collisions"]}
    assert "HCCL" in shared and "MCCL" not in shared
    metax = json.loads(said_json(capsys, "--vendor", "metax"))
    assert {chip["vendor"] for chip in metax["chips"]} == {"metax"}


def said_json(capsys: Capture, *arguments: str) -> str:
    assert main(["chips", "--json", *arguments]) == 0
    return capsys.readouterr().out


def test_refusals_name_what_would_help(capsys: Capture) -> None:
    assert "did you mean" in refused(capsys, 1, "910D")
    assert "known are" in refused(capsys, 1, "--vendor", "acme")
    assert "not both" in refused(capsys, 2, "h100", "--vendor", "amd")
    assert "at most 4" in refused(capsys, 2, "h100", "h200", "h20", "h800", "a100")


def test_looks() -> None:
    assert [number(x) for x in (989, 1307.4, 362.05, 0.5)] == ["989", "1,307.4", "362.05", "0.5"]
    declared, measured = Figure(10, "vendor", "x"), Figure(8, "measured", "y", "", (Figure(9, "measured", "z"),))
    assert (marked(unknown()), marked(declared), marked(measured)) == ("?", "10 v", "8 m*")
    assert (
        both(declared, measured) == "10 v, 8 m*"
        and both(unknown(), measured) == "8 m*"
        and both(unknown(), None) == "?"
    )
    assert both(Figure(9, "measured", "x"), measured) == "8 m*"  # never two measured ones for one place
    assert columns([["a", "bb"], ["ccc", "d"]]) == ["  a    bb", "  ccc   d"]
    assert list(wrapped("label", "word " * 40, 10))[1].startswith(" " * 10 + "word")
    assert list(wrapped("label", "", 10)) == ["label"]
    chips = load().chips
    assert [computing(chips[c], "fp8-e4m3") for c in ("mi300x", "mi308x", "a100-sxm-80", "mlu590")] == [
        "2,614.9 n other", "other", "no v", "?",
    ]  # fmt: skip


def test_the_guides_sample_is_what_is_shown(capsys: Capture) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "chips.md").read_text("utf-8")
    shown = {" ".join(line.split()) for line in said(capsys).splitlines()}
    samples = [
        " ".join(line.split()) for line in guide.splitlines() if line.startswith(("  h800-sxm", "  kunlun-p800"))
    ]
    assert len(samples) == 2 and set(samples) <= shown
