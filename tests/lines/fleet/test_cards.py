"""Which environment shows an engine its cards, up to the process that is started."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.lines.fleet.harness import until

from twinline.facts.chips import load
from twinline.lines.cards import check_cards, device, hidden, shown
from twinline.lines.drivers.native import Native
from twinline.lines.fleet import home, starting
from twinline.lines.fleet.file import embedded
from twinline.lines.spec import LineSpec

# One chip of a vendor each.
SHOWN = {
    "nvidia-h800": {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "ascend-910b3": {"ASCEND_RT_VISIBLE_DEVICES": "2,3"},
    "kunlun-p800": {"XPU_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "2,3"},
    "hygon-k100ai": {"HIP_VISIBLE_DEVICES": "2,3"},
    "mlu590": {"MLU_VISIBLE_DEVICES": "2,3"},
    "mtt-s4000": {"MUSA_VISIBLE_DEVICES": "2,3"},
    "metax-c500": {"CUDA_VISIBLE_DEVICES": "2,3"},
    "mi300x": {"HIP_VISIBLE_DEVICES": "2,3"},
    "biren-106": {"SUPA_VISIBLE_DEVICES": "2,3"},
    "enflame-s60": {"TOPS_VISIBLE_DEVICES": "2,3"},
    "bi-v100": {"CUDA_VISIBLE_DEVICES": "2,3"},
    "max-1100": {"ZE_AFFINITY_MASK": "2,3"},
    "ppu-zw810e": {"CUDA_VISIBLE_DEVICES": "2,3"},
}


def line(**values: Any) -> LineSpec:
    return LineSpec(**{"name": "a", "model": "m", "engine": "vllm", "cards": (2, 3), "chip": "nvidia-h800", **values})


@pytest.mark.parametrize("chip", SHOWN)
def test_cards_are_shown_by_the_variables_of_the_vendor(chip: str) -> None:
    assert shown(line(chip=chip)) == SHOWN[chip]
    assert shown(line(chip=chip, cards=())) == {}
    check_cards(line(chip=chip))


def test_every_vendor_has_variables_or_its_cards_are_refused() -> None:
    for vendor in load().vendors.values():
        one = line(chip=load().of(vendor.id)[0].id)
        if vendor.visible.set:
            assert "2,3" in shown(one).values()
            check_cards(one)
        else:
            with pytest.raises(ValueError, match="nothing would keep the engine from other cards"):
                check_cards(one)
        assert all(name in vendor.visible.process + vendor.visible.order for name in vendor.visible.set), vendor.id
        assert vendor.visible.choosing or vendor.id == "cpu"
    assert not load().vendors["intel-gaudi"].visible.set


def test_what_the_line_says_itself_and_a_container_are_left_alone() -> None:
    assert shown(line(env={"CUDA_VISIBLE_DEVICES": "GPU-1234"})) == {}
    assert shown(line(env={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})) == SHOWN["nvidia-h800"]  # it chooses nothing
    assert shown(line(chip="mi300x", env={"ROCR_VISIBLE_DEVICES": "2,3"})) == {}  # HIP would choose among these two
    assert hidden(line(chip="mi300x")) >= {"ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"}
    assert not hidden(line(cards=())) and not hidden(line(chip="mi300x", env={"ROCR_VISIBLE_DEVICES": "2,3"}))
    assert shown(line(container="image")) == {}
    check_cards(line(container="image", chip="nobody's"))


def test_cards_that_nobody_could_show_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"nothing would keep .* name the chip, or say it in env: no chip .* 'cpu'"):
        check_cards(line(chip="cpu"))
    with pytest.raises(ValueError, match=r"say it in env \(HABANA.*: Intel Gaudi has no variable of card numbers"):
        check_cards(line(chip="gaudi 3"))
    check_cards(line(chip="gaudi 3", env={"HABANA_VISIBLE_MODULES": "2,3"}))
    check_cards(line(chip="cpu", env={"CUDA_VISIBLE_DEVICES": "1"}))
    with pytest.raises(ValueError, match="no chip"):
        check_cards(line(chip="cpu", env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}))
    check_cards(line(chip="cpu", cards=()))
    check_cards(line(chip="cpu", engine="simulated"))


def test_a_native_line_computes_on_its_one_card() -> None:
    def native(**values: Any) -> LineSpec:
        return line(**{"engine": "native", "weights": str(embedded()), "cards": (3,), **values})

    def flag(spec: LineSpec) -> str:
        argv = Native().command(spec, 1).argv
        return argv[argv.index("--device") + 1] if "--device" in argv else ""

    assert flag(native()) == "cuda" and flag(native(chip="ascend-910b3")) == "npu"
    assert flag(native(options={"device": "cuda:0"})) == "cuda:0" and flag(native(cards=())) == ""
    assert device(native(chip="nobody's")) is None
    Native().check(native())
    with pytest.raises(ValueError, match="on one card"):
        check_cards(native(cards=(2, 3)))
    for other in ("cuda:${N}", "simchip:clean"):
        Native().check(native(options={"device": other}))
    with pytest.raises(ValueError, match="sees card 3 alone, as number 0"):
        Native().check(native(options={"device": "cuda:3"}))
    Native().check(native(options={"device": "cuda:3"}, env={"CUDA_VISIBLE_DEVICES": "0,1,2,3"}))


@pytest.mark.parametrize(
    ("env", "said"),
    [({}, "2,3 PCI_BUS_ID"), ({"CUDA_VISIBLE_DEVICES": "${MINE}"}, "7 none"), ({"CUDA_DEVICE_ORDER": "X"}, "2,3 X")],
)
def test_the_engine_that_is_started_sees_them(
    env: dict[str, str], said: str, twinline_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # what `up` was shown
    directory = home.run_directory("f")
    home.prepare(directory)
    tell = "import os; print(*(os.environ.get(f'CUDA_{name}', 'none') for name in ('VISIBLE_DEVICES', 'DEVICE_ORDER')))"
    spec = line(weights="org/model", env=env, options={"executable": [sys.executable, "-c", tell]})

    async def test() -> None:
        engine = starting.start("a", spec, directory, 1, {"MINE": "7"})
        await engine.ended()
        await until(lambda: engine.last_words() == said)

    asyncio.run(test())
