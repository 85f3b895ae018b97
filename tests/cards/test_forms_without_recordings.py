"""Forms of which no whole recording is public, written here from public descriptions; and drift of others."""

from __future__ import annotations

import pytest
from tests.cards.recordings import line, recordings

from twinline.cards.vendors import (
    amd,
    biren,
    cambricon,
    enflame,
    huawei,
    intel_gaudi,
    intel_xpu,
    kunlunxin,
    nvidia,
    t_head,
)

QUERY = nvidia.ASKS[0].command


def test_the_list_without_units_is_in_mib() -> None:
    text = (
        "0, GPU-a, NVIDIA H200, 143771, 140165, 100, 60, 685.12, 700.00, 570.124.06\n"
        "1, GPU-b, NVIDIA H200, 143771, 3, [N/A], [Not Supported], [Unknown Error], ERR!, 570.124.06\n"
    )
    found = nvidia.query(text, QUERY)
    shown = [line(card).replace("h200-sxm; NVIDIA H200; -; unknown", "H200") for card in found.cards]
    assert shown == [
        "0/-/-; H200; 140165/143771 MiB; 100%; 60C; 685.12/700 W; uuid GPU-a; driver 570.124.06",
        "1/-/-; H200; 3/143771 MiB; -; -; -/- W; uuid GPU-b; driver 570.124.06",
    ]
    assert not found.findings


def test_a_decimal_comma_moves_nothing_in_a_list() -> None:
    text = "0, GPU-a, NVIDIA H200, 143771, 3, 0, 30, 65,23, 700,00, 570.1\n"
    found = nvidia.query(text, QUERY)
    assert not found.cards
    assert "65,23" in found.findings[0].text


def test_a_list_with_its_own_header_is_read_by_it() -> None:
    command = "nvidia-smi --query-gpu=index,memory.used,power.draw --format=csv"
    text = "power.draw [W], index, memory.used [MiB]\n65.23 W, 3, 12 MiB\n"
    assert line(nvidia.query(text, command).cards[0]) == "3/-/-; -; -; -; unknown; 12/- MiB; -; -; 65.23/- W"
    assert not nvidia.query("index, memory.used [MiB]\n3, 12 MiB\n", command).cards


XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>570.124.06</driver_version>
<gpu id="00000000:18:00.0"><product_name>NVIDIA H200</product_name><uuid>GPU-d0</uuid><serial>N/A</serial>
<fb_memory_usage><total>143771 MiB</total><reserved>600 MiB</reserved><used>12 MiB</used></fb_memory_usage>
<bar1_memory_usage><total>262144 MiB</total><used>1 MiB</used></bar1_memory_usage>
<utilization><gpu_util>7 %</gpu_util></utilization>
<temperature><gpu_temp>33 C</gpu_temp><gpu_temp_max_threshold>90 C</gpu_temp_max_threshold></temperature>
<gpu_power_readings><power_draw>[Unknown Error]</power_draw><average_power_draw>81.00 W</average_power_draw>
<current_power_limit>700.00 W</current_power_limit></gpu_power_readings>
<remapped_rows><remapped_row_failure>FAILURE</remapped_row_failure></remapped_rows>
<gpu_recovery_action>ACTION</gpu_recovery_action>
<processes><process_info><pid>42</pid><type>C</type><process_name>python</process_name>
<used_memory>4096 MiB</used_memory></process_info></processes></gpu></nvidia_smi_log>
"""


def xml(failure: str = "No", action: str = "None") -> str:
    return XML.replace("FAILURE", failure).replace("ACTION", action)


def test_the_xml_gives_numbers_processes_and_health() -> None:
    found = nvidia.whole(xml(), "nvidia-smi -q -x")
    assert line(found.cards[0]) == (
        "-/-/-; h200-sxm; NVIDIA H200; 0000:18:00.0; ok; 12/143771 MiB; 7%; 33C; 81/700 W; uuid GPU-d0; "
        "driver 570.124.06; pids 42:4096"
    )


@pytest.mark.parametrize(("failure", "action", "health"), [
    ("No", "None", "ok"), ("Yes", "None", "bad"), ("No", "Reset", "bad"),
    ("No", "Drain and Reset", "bad"),
    ("No", "N/A", "unknown"), ("N/A", "", "unknown"),
])  # fmt: skip
def test_what_the_driver_would_do_to_a_card_is_its_health(failure: str, action: str, health: str) -> None:
    assert nvidia.whole(xml(failure, action), "").cards[0].health == health


def test_xml_that_is_cut_or_declares_entities_gives_nothing() -> None:
    for text in (xml()[:900], xml().replace("<nvidia_smi_log>", '<!ENTITY a "b"><nvidia_smi_log>', 1), "<a>", ""):
        found = nvidia.whole(text, "")
        assert not found.cards
        assert found.findings


def test_amd_static_in_its_three_forms() -> None:
    size = '{"value": 196592, "unit": "MB"}'
    driver = '{"driver_name": "amdgpu", "driver_version": "6.12.12"}'
    older = f'[{{"gpu": 0, "asic": {{"market_name": "MI300X"}}, "vram": {{"size": {size}}}, "driver": {driver}}}]'
    wrapped = recordings()["amd-smi-static-7x"].text
    oldest = older.replace(size, '"196592 MB"')
    for text in (wrapped, older, oldest, f"WARNING: x\n{older}\n"):
        card = amd.static(text, "").cards[0]
        assert (card.chip, card.memory_total, card.driver) == ("mi300x", 196592 << 20, "6.12.12")
    absent = amd.static(older.replace(size, '"N/A"'), "").cards[0]
    assert absent.memory_total is None


def test_amd_metrics_by_the_names_of_their_columns() -> None:
    found = amd.metric("gpu,gfx_activity,foo,socket_power,hotspot,total_vram,used_vram\n0,3,x,132,N/A,196592,284\n", "")
    assert line(found.cards[0]) == "0/-/-; -; -; -; unknown; 284/196592 MiB; 3%; -; 132/- W"
    assert amd.metric("something else\n", "").findings


def test_gaudis_list_needs_units() -> None:
    command = intel_gaudi.ASKS[1].command
    found = intel_gaudi.query("0, 5, 00P1-HL2080-1, HL-225, 98304 MiB, 768 MiB, 0 %, 26 C, 87 W\n", command)
    expected = "0/-/-; gaudi2; HL-225; -; unknown; 768/98304 MiB; 0%; 26C; 87/- W; uuid 00P1-HL2080-1"
    assert line(found.cards[0]) == expected
    bare = intel_gaudi.query("0, 5, 00P1, HL-225, 103079215104, 805306368, 0, 26, 87\n", command).cards[0]
    assert bare.memory_total is bare.memory_used is None
    assert bare.watts == 87


def test_lists_of_tools_that_nobody_recorded() -> None:
    found = t_head.query("00000000:A8:00.0, 98304 MiB, 400.00 W, S123\n", t_head.ASKS[0].command)
    assert line(found.cards[0]) == "-/-/-; -; -; 0000:a8:00.0; unknown; -/98304 MiB; -; -; -/400 W; serial S123"
    found = biren.query("0, 1024, 31744\n", biren.ASKS[0].command)
    assert [(card.card, card.memory_used) for card in found.cards] == [(0, None)]


def test_several_devices_of_intel() -> None:
    one = recordings()["intel-xpu-smi-discovery"].text
    other = one.replace('"device_id": 0', '"device_id": 1')
    both = f'{{"device_list": [{one}, {other}]}}'
    assert [card.card for card in intel_xpu.discovery(both, "").cards] == [0, 1]


def test_drift_between_drivers_changes_nothing() -> None:
    old = recordings()["efsmi-q-s60"].text.replace("Total Size", "Mem Size").replace("Used Size ", "Mem Usage")
    new = recordings()["efsmi-q-s60"].text
    assert [line(c) for c in enflame.detail(old, "").cards] == [line(c) for c in enflame.detail(new, "").cards]
    table = recordings()["cnmon-table-mlu370x8"].text
    newer = table.replace("SR-IOV  ", "Mode    ")
    assert newer != table
    assert [line(c) for c in cambricon.info(newer, "").cards] == [line(c) for c in cambricon.info(table, "").cards]


def test_the_place_of_chip_id_decides_whose_a_value_is() -> None:
    """It opens a block in `common` and closes one in `usages`; read the other way, a value is of the wrong chip."""
    text = (
        "NPU ID : 1\nChip Count : 2\n\nHBM Capacity(MB) : 32768\nAicore Usage Rate(%) : 11\nChip ID : 0\n\n"
        "HBM Capacity(MB) : 32768\nAicore Usage Rate(%) : 22\nChip ID : 1\n"
    )
    cards = huawei.usages(text, "").cards
    assert [(card.card, card.device, card.utilisation) for card in cards] == [(1, 0, 11.0), (1, 1, 22.0)]
    cards = huawei.common("NPU ID : 1\nChip ID : 0\nTemperature(C) : 60\nChip ID : 1\nTemperature(C) : 59\n", "").cards
    assert [(card.device, card.temperature) for card in cards] == [(0, 60.0), (1, 59.0)]


def test_a_total_of_another_memory_is_not_the_memory() -> None:
    module = recordings()["xpu-smi-q-p800"]
    text = module.text.replace(
        "    Utilization\n", "    BAR1 Memory Usage\n        Total  : 256 MiB\n    Utilization\n"
    )
    assert text != module.text
    assert kunlunxin.detail(text, "").cards[0].memory_total == 98304 << 20


WHOLE = """<?xml version="1.0" ?><nvidia_smi_log><driver_version>550.54</driver_version>
<gpu id="00000000:18:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name><uuid>GPU-a</uuid>
<gpu_recovery_action>None</gpu_recovery_action></gpu>
<gpu id="00000000:5E:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name><uuid>[GPU is lost]</uuid>
<gpu_recovery_action>N/A</gpu_recovery_action></gpu></nvidia_smi_log>
"""


@pytest.mark.parametrize("behind", ["", "Unable to determine the device handle for GPU 0000:5E:00.0: Unknown Error\n"])
def test_a_card_that_is_lost_is_bad_and_costs_the_others_nothing(behind: str) -> None:
    found = nvidia.whole(WHOLE + behind, "nvidia-smi -q -x")
    assert [(card.health, card.reason) for card in found.cards] == [
        ("ok", "nvidia-smi: recovery action None"), ("bad", "nvidia-smi: GPU is lost")
    ]  # fmt: skip
