"""What the names of simulated chips mean, and that such a chip is never taken for silicon."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.devices.chips import opened, wrong

from twinline.engine.devices.device import open_device
from twinline.engine.devices.simulated.chip import CHIPS
from twinline.engine.devices.simulated.faults import FAULTS
from twinline.engine.devices.simulated.profiles import PROFILES


@pytest.mark.parametrize(
    ("name", "shown", "index"),
    [
        ("simchip", "simchip:clean (simulated)", 0),
        ("simchip:clean", "simchip:clean (simulated)", 0),
        ("simchip:0", "simchip:clean (simulated)", 0),
        ("simchip:2", "simchip:2 (simulated)", 2),
        ("simchip:no-fp8+drifts=70+silu-cut", "simchip:no-fp8+drifts=70+silu-cut (simulated)", 0),
    ],
)
def test_names(name: str, shown: str, index: int) -> None:
    with opened(name) as device:
        assert (device.name, device.torch_device) == (shown, torch.device("simchip", index))
        assert device.simulated and device.providers == ("batched", "reference")
        assert device.chip is CHIPS[index]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simchip:4", "there are 4 simulated chips"),
        ("simchip:claen", r"no profile 'claen' of the simulated chip \(near: clean\)"),
        ("simchip:clean+silu", r"no fault 'silu' of the simulated chip \(near: silu-cut"),
        ("simchip:clean+hangs=soon", "'soon' is not a number"),
        ("simchip:clean+hangs=-3", "'-3' is not a number"),
        ("simchip:clean+hangs=nan", "'nan' is not a number"),
        ("simchip:clean+silu-cut=3", "the fault 'silu-cut' takes no number"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with opened(), pytest.raises(ValueError, match=message):
        open_device(name)


def test_auto_is_never_simulated() -> None:
    with opened():
        assert torch.accelerator.is_available()
        assert open_device("auto").name == "cpu"


def test_a_name_opened_again_changes_nothing_and_another_name_does() -> None:
    with opened("simchip:clean+dies=1000"):
        torch.zeros(1, device="simchip")
        ran = CHIPS[0].ops
        assert ran > 0
        open_device("simchip:clean+dies=1000")
        assert CHIPS[0].ops == ran and CHIPS[0].dies_at == 1000
        open_device("simchip:clean")
        assert CHIPS[0].dies_at is None and CHIPS[0].ops == 0


def test_a_lost_chip_cannot_be_opened_under_any_name() -> None:
    with opened():
        CHIPS[0].die("a test")
        for name in ("simchip", "simchip:no-fp8"):
            with pytest.raises(ValueError, match=r"is lost \(simulated\): a test"):
                open_device(name)
        assert open_device("simchip:1").name == "simchip:1 (simulated)"
        CHIPS[0].heal()
        assert open_device("simchip").supports(torch.float32)


# Profiles.

SUPPORTS = {"no-bfloat16": (True, True, False), "like-310p": (True, True, False)}


@pytest.mark.parametrize("name", PROFILES)
def test_what_profiles_compute_in(name: str) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    with opened(f"simchip:{name}") as device:
        assert tuple(map(device.supports, dtypes)) == SUPPORTS.get(name, (True, True, True))


@pytest.mark.parametrize("name", ["no-fp8", "like-a100", "like-310p", "like-p800"])
def test_chips_without_8_bit_floats(name: str) -> None:
    host = torch.ones(4)
    with opened(f"simchip:{name}"), pytest.raises(NotImplementedError, match="not implemented for 'float8_e4m3fn'"):
        host.to("simchip").to(torch.float8_e4m3fn)
    with opened():
        assert host.to("simchip").to(torch.float8_e4m3fn).float().sum().item() == 4


def test_bytes_of_a_refused_dtype_may_lie_on_the_chip_but_not_be_computed_with() -> None:
    host = torch.ones(4, dtype=torch.bfloat16)
    with opened("simchip:no-bfloat16"):
        there = host.to("simchip")
        assert torch.equal(there.clone().cpu(), host)
        for refused in (
            lambda: there + there,
            lambda: there.float(),
            lambda: torch.ones(2, device="simchip").bfloat16(),
        ):
            with pytest.raises(NotImplementedError, match=r"not implemented for 'BFloat16' on simchip:0 \(simulated\)"):
                refused()


def test_missing_ops_say_so() -> None:
    x = torch.ones(2, 1, 2, 2)
    with opened("simchip:missing-ops"):
        for call in (lambda: x.to("simchip").argsort(), lambda: torch.nn.functional.scaled_dot_product_attention(
                *[x.to("simchip")] * 3)):  # fmt: skip
            with torch.inference_mode(), pytest.raises(NotImplementedError, match=r"aten::\w+ is not implemented"):
                call()


def test_a_list_of_allowed_ops_is_enough_for_the_reference_and_not_for_more() -> None:
    with opened("simchip:first-ops") as device:
        assert wrong(device, providers=("reference",)) == {}
        assert wrong(device, providers=("batched",)).keys() >= {"embedding", "rms_norm", "mla_prefill", "experts"}


def test_a_young_plugin_has_the_reference_where_it_lacks_the_fused_op() -> None:
    with opened("simchip:young-plugin") as device:
        assert wrong(device, providers=("reference",)) == {}
        missing = wrong(device, providers=("batched",))
        assert missing.keys() == {
            "kv_write", "mla_prefill", "mla_decode", "attention_prefill", "attention_decode"
        }  # fmt: skip
        assert all("is not implemented" in text for text in missing.values())


def test_the_page_names_every_profile_and_fault_with_its_own_words() -> None:
    page = (Path(__file__).parents[3] / "docs" / "simulated-chip.md").read_text("utf-8")
    for name, profile in PROFILES.items():
        assert f"| `{name}` | {profile.text} |" in page
    for name, fault in FAULTS.items():
        number = f"{fault.counts} ({fault.number:g})" if fault.number else ""
        assert f"| `{name}` | {fault.text} | {number} |" in page
