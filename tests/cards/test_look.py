"""A look at a node: whom it asks, what becomes of the answers, and that nothing a tool does ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.cards.recordings import recordings
from tests.cards.scripted import Script, bus, software

from twinline.cards.ask import Ask
from twinline.cards.card import Reading
from twinline.cards.execute import Ran
from twinline.cards.look import Seen, look
from twinline.cards.vendors import metax

FULL = "npu-smi info"


def text(identifier: str) -> str:
    return recordings()[identifier].text


def seen(tmp_path: Path, answers: Mapping[str, str | Ran], *devices: tuple[str, str, str, str]) -> tuple[Seen, Script]:
    script = Script(answers)
    return look(script, pci=bus(tmp_path / "bus", *devices), software=software()), script


def test_a_node_without_anything_has_its_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Intel(R) Xeon(R) 6980P\n")
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n")
    found = look(Script({}), pci=tmp_path / "none", proc=tmp_path, software=software())
    assert [card.vendor for card in found.cards] == ["cpu"]
    assert found.cards[0].name == "Intel(R) Xeon(R) 6980P"
    assert found.cards[0].chip == "cpu-xeon-6980p"
    assert (found.cards[0].memory_total, found.cards[0].memory_used) == (1000 << 10, 600 << 10)
    assert not found.findings


def test_several_outputs_of_one_tool_make_one_card(tmp_path: Path) -> None:
    board = text("npu-smi-board-1")
    found, script = seen(tmp_path, {
        FULL: text("npu-smi-info-910b2c-23.0.3"),
        "npu-smi info -m": text("npu-smi-info-m-910a"),
        "npu-smi info -t board -i 0 -c 0": board.replace("81:00.0", "5A:00.0").replace(": xxx", ": 910B2C"),
        "npu-smi info -t hccs -i 1 -c 0": text("npu-smi-hccs-ok").replace(": OK", ": NOK"),
        "npu-smi info -t topo": text("npu-smi-topo"),
    })  # fmt: skip
    first = found.cards[0]
    assert (first.card, first.device, first.logical, first.watts) == (0, 0, 0, 89.9)
    assert first.uuid == "901421D4 02103514 1711E613 6DA7040A 00102001"
    assert len(found.topologies) == 1
    assert [one.message for one in found.findings if one.kind == "not-available"] == [
        "HCCS links of card 1/0 are not well"
    ]
    assert "npu-smi info -t board -i 7 -c 0" in script.asked
    assert not [command for command in script.asked if "NPU" in command or "CHIP" in command]


def test_one_name_two_tools_the_bus_decides(tmp_path: Path) -> None:
    table, discovery = text("xpu-smi-table-p800"), f"[{text('intel-xpu-smi-discovery')}]"
    found, script = seen(tmp_path, {"xpu-smi": table}, ("0000:03:00.0", "2057", "3686", "120000"))
    assert [card.vendor for card in found.cards] == ["kunlunxin", "cpu"]
    assert "xpu-smi discovery -j" not in script.asked
    (tmp_path / "b").mkdir()
    found, script = seen(
        tmp_path / "b", {"xpu-smi discovery -j": discovery}, ("0000:29:00.0", "8086", "0bda", "038000")
    )
    assert [card.vendor for card in found.cards] == ["intel-xpu", "cpu"]
    assert "xpu-smi" not in script.asked


@pytest.mark.parametrize(
    ("identifier", "vendor"), [("rocm-smi-json-hygon-24.04.3", "hygon"), ("rocm-smi-json-rx7800", "amd")]
)
def test_one_name_two_tools_without_a_bus_the_output_decides(tmp_path: Path, identifier: str, vendor: str) -> None:
    flags = "--showmeminfo vram --showpower --showserial --showuse --showtemp --showproductname --showuniqueid --json"
    answers = {f"rocm-smi -i {flags}": text(identifier), f"rocm-smi {flags}": text(identifier)}
    found, _ = seen(tmp_path, answers)
    assert [card.vendor for card in found.cards] == [vendor, "cpu"]


def test_an_output_that_could_be_two_vendors_is_nobodys(tmp_path: Path) -> None:
    flags = "--showmeminfo vram --showpower --showserial --showuse --showtemp --showproductname --showuniqueid --json"
    answer = '{"card0": {"Average Graphics Package Power (W)": "80.0"}}'
    found, _ = seen(tmp_path, {f"rocm-smi -i {flags}": answer, f"rocm-smi {flags}": answer})
    assert [card.vendor for card in found.cards] == ["cpu"]
    assert "doubtful" in {one.kind for one in found.findings}


def test_what_tools_do_wrong_is_found_and_named(tmp_path: Path) -> None:
    found, _ = seen(tmp_path, {
        FULL: Ran(code=255, out=text("npu-smi-broken"), trouble="failed"),
        "mx-smi": Ran(trouble="timeout"),
        "hl-smi": Ran(code=1, err="hl-smi: Permission denied, needs root", trouble="failed"),
        "cnmon": "",
        "efsmi": "something in a form that nobody knows, 12 of 34",
        "ixsmi": Ran(out="x" * 100, trouble="too-long"),
    })  # fmt: skip
    kinds = {(one.vendor, one.kind) for one in found.findings}
    assert {("huawei", "broken"), ("metax", "timeout"), ("intel-gaudi", "permission"), ("cambricon", "broken"),
            ("enflame", "unparsable"), ("iluvatar", "broken")} <= kinds  # fmt: skip
    broken = next(one for one in found.findings if one.vendor == "huawei" and one.text.startswith("dcmi"))
    assert "255" in broken.message
    assert [card.vendor for card in found.cards] == ["cpu"]


def test_what_a_failed_tool_printed_is_read_all_the_same(tmp_path: Path) -> None:
    command = recordings()["hy-smi-json-z100l-error"].command
    found, _ = seen(tmp_path, {command: Ran(code=1, out=text("hy-smi-json-z100l-error"), trouble="failed")})
    assert found.cards[0].name == "Z100L"
    assert "exit code 1" in next(one.message for one in found.findings if one.vendor == "hygon")


def test_cards_without_their_tool_are_shown_and_told(tmp_path: Path) -> None:
    found, _ = seen(
        tmp_path, {}, ("0000:81:00.0", "19e5", "d802", "120000"), ("0000:00:02.0", "8086", "46a6", "030000")
    )
    assert [(card.vendor, card.bus, card.tool, card.health) for card in found.cards[:-1]] == [
        ("huawei", "0000:81:00.0", "pci", "unknown")
    ]
    assert [(one.kind, one.vendor, one.tool) for one in found.findings] == [("missing", "huawei", "npu-smi")]


def test_a_file_that_a_tool_writes_is_read(tmp_path: Path) -> None:
    body = (
        '{"CnmonInfo": [{"CardNum": 0, "ProductName": "MLU370-X8", "UUID": "MLU-1", "PhysicalMemUsage": '
        '{"Total": 23374, "Used": 12}, "Temperature": {"Chip": 33}, "Utilization": {"MLUAverage": 5}}]}'
    )
    command = "cnmon info -e -m -u -j"
    found, _ = seen(
        tmp_path, {"cnmon": text("cnmon-table-mlu370x8"), command: Ran(code=0, files={"cnmon_info.json": body})}
    )
    assert (found.cards[0].uuid, found.cards[0].memory_used, found.cards[0].watts) == ("MLU-1", 0, 106.0)
    assert found.cards[1].uuid is None


def test_another_detector_speaks_for_cards_whose_tool_is_not_here(tmp_path: Path) -> None:
    answers = {"gpustack-runtime detect --format json": text("gpustack-detect-thead_ppu")}
    found, script = seen(tmp_path, answers, ("0000:a8:00.0", "1ded", "6001", "120000"))
    assert [(card.vendor, card.chip, card.watts) for card in found.cards[:-1]] == [("t-head", "ppu-zw810e", 93.0)]
    (tmp_path / "b").mkdir()
    _, script = seen(tmp_path / "b", answers)
    assert script.asked == []


def test_cards_stand_in_one_order(tmp_path: Path) -> None:
    found, _ = seen(tmp_path, {FULL: text("npu-smi-info-910c"), "mx-smi": text("mx-smi-table-c500")})
    assert [card.label for card in found.cards[:5]] == [
        "huawei 0/0",
        "huawei 0/1",
        "huawei 1/0",
        "huawei 1/1",
        "metax 0",
    ]


def test_a_tool_that_hung_is_not_asked_about_each_device(tmp_path: Path) -> None:
    found, script = seen(tmp_path, {FULL: text("npu-smi-info-910a-22.0.3"), "npu-smi info -m": Ran(trouble="timeout")})
    assert len(found.cards) == 9
    assert not [command for command in script.asked if " -i " in command]
    assert [one.kind for one in found.findings if one.kind == "timeout"] == ["timeout"]


def test_a_reader_that_fails_hides_no_other_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output: str, command: str) -> Reading:
        raise RuntimeError("oops")

    monkeypatch.setattr(metax, "ASKS", (Ask("mx-smi", fail),))
    found, _ = seen(tmp_path, {FULL: text("npu-smi-info-910c"), "mx-smi": text("mx-smi-table-c500")})
    assert [card.vendor for card in found.cards] == ["huawei"] * 4 + ["cpu"]
    assert "RuntimeError: oops" in next(one.message for one in found.findings if one.vendor == "metax")


def test_only_what_is_not_known_is_asked(tmp_path: Path) -> None:
    _, script = seen(tmp_path, {FULL: text("npu-smi-info-910a-22.0.3")})
    assert "npu-smi info -t board -i 3 -c 0" in script.asked
    assert "npu-smi info -t common -i 3" not in script.asked


class Hanging(Script):
    """A tool that runs until it is ended."""

    def __init__(self) -> None:
        super().__init__({FULL: ""})
        self.begun, self.ended = threading.Event(), threading.Event()

    def run(self, command: Sequence[str], timeout: float) -> Ran:
        self.begun.set()
        self.early = self.ended.wait(60)
        return Ran(trouble="failed")

    def stop(self) -> None:
        self.ended.set()


def test_a_signal_that_does_not_end_a_wait_ends_the_look_all_the_same(tmp_path: Path) -> None:
    """As one that comes between the last look at signals and the wait: it is given to another thread here."""
    hanging = Hanging()

    def strike() -> None:
        hanging.begun.wait(20)
        time.sleep(0.1)  # so that all wait
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGUSR1, leave)
    thread = threading.Thread(target=strike)
    try:
        thread.start()
        with pytest.raises(SystemExit):
            look(hanging, pci=bus(tmp_path / "bus"), software=software())
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert hanging.early


def test_a_card_that_its_tool_passes_over_is_told(tmp_path: Path) -> None:
    """It is on the bus, and the tool speaks of its neighbour alone."""
    one = (
        '<nvidia_smi_log><gpu id="00000000:18:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name>'
        "<gpu_recovery_action>None</gpu_recovery_action></gpu></nvidia_smi_log>"
    )
    devices = [(f"0000:{bus}:00.0", "10de", "2330", "030200") for bus in ("18", "5e")]
    found, _ = seen(tmp_path, {"nvidia-smi -q -x": one}, *devices)
    cards = [card for card in found.cards if card.vendor == "nvidia"]
    assert [(card.bus, card.tool, card.health) for card in cards] == [
        ("0000:18:00.0", "nvidia-smi", "ok"), ("0000:5e:00.0", "pci", "unknown")
    ]  # fmt: skip
    assert cards[1].reason == "it is on the PCI bus, and no tool speaks of it"
    (tmp_path / "alone").mkdir()
    alone, _ = seen(tmp_path / "alone", {"nvidia-smi -q -x": one}, devices[0])
    assert [card.tool for card in alone.cards if card.vendor == "nvidia"] == ["nvidia-smi"]
