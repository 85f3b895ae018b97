"""A profile decides which providers serve; one of another device, or that forbids serving, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.facts.test_profiles import PROFILE

import twinline
from twinline.engine.build import Built, Options, build
from twinline.engine.devices.cpu import Cpu
from twinline.engine.ops.registry import OPS, Ops, StaticFacts
from twinline.facts.profiles import Choice, Refused, write_profile

TINY = Path(twinline.__file__).parent / "models" / "tiny-r1"
F32 = StaticFacts("cpu", torch.float32)


def refused(op: str, provider: str) -> Refused:
    return Refused(op=op, provider=provider, dtype="float32", reason="level 1: off by 3%")


TRIED = tuple(Choice(op=op, dtype="float32", provider="reference") for op in OPS)
OTHERS = tuple(refused("mla_decode", name) for name in Cpu.providers if name not in ("batched", "reference"))


def built(tmp_path: Path, *refusals: Refused, weights: str = "plain", **changes: Any) -> Built:
    changed = {"device": "cpu", "device_name": "cpu", "refused": refusals, "choices": TRIED} | changes
    write_profile(msgspec.structs.replace(PROFILE, **changed), tmp_path / "profile.json")
    options = Options(profile=str(tmp_path / "profile.json"), kv_tokens=64, threads=1, weights=weights)
    return build(TINY, options, lambda outputs: None)


def test_a_refused_provider_is_passed_over_with_the_profiles_reason(tmp_path: Path) -> None:
    ops = built(tmp_path, *OTHERS, refused("mla_decode", "batched")).ops
    by_op = {c.op: c for c in ops.choices}
    assert by_op["mla_decode"].provider == "reference"
    assert by_op["mla_prefill"] == next(c for c in Ops(Cpu.providers, F32).choices if c.op == "mla_prefill")
    assert ("batched", "level 1: off by 3%") in by_op["mla_decode"].passed_over
    line = next(line for line in ops.explain().splitlines() if line.startswith("mla_decode"))
    assert "reference" in line and "batched: level 1: off by 3%" in line


def test_refusals_hold_for_their_dtype_alone(tmp_path: Path) -> None:
    other = msgspec.structs.replace(refused("mla_decode", "batched"), dtype="bfloat16")
    assert {c.op: c.provider for c in built(tmp_path, *OTHERS, other).ops.choices}["mla_decode"] == "batched"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device_name": "other"}, "the profile is of other, and the device is cpu"),
        ({"grade": "unfit", "rule": "unfit: it dies"}, "unfit: it dies"),
        ({"dtype": "float16"}, "says nothing of models in float32"),
        ({"complete": False}, "not of the whole ladder"),
        (
            {"choices": tuple(c for c in TRIED if not c.op.startswith("mla_"))},
            r"nothing of mla_absorb, mla_decode, mla_prefill \(it was made with m, A\): adapt with --model .*tiny-r1",
        ),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        built(tmp_path, **changes)


def test_a_profile_of_another_model_with_the_same_ops_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path)
    assert "made with m: its ops were tried in that model's shapes" in caplog.text
    caplog.clear()
    built(tmp_path, model="tiny-r1")
    assert "made with" not in caplog.text


def test_weights_of_a_form_that_was_not_tried_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path, weights="int8")
    assert "products with int8 weights were not tried on cpu" in caplog.text


def test_an_op_that_is_used_and_has_no_provider_left(tmp_path: Path) -> None:
    both = *OTHERS, refused("mla_decode", "batched"), refused("mla_decode", "reference")
    with pytest.raises(ValueError, match="no provider of mla_decode is right on this device in float32: level 1"):
        built(tmp_path, *both)


def test_one_that_is_not_used_does_not_matter(tmp_path: Path) -> None:
    every = (refused("attention_decode", name) for name in Cpu.providers)
    assert built(tmp_path, *every).ops is not None


def test_the_order_goes_on_behind_what_is_refused() -> None:
    ops = Ops(("onednn", "batched", "reference"), F32, {("linear", "batched"): "wrong"})
    choice = next(c for c in ops.choices if c.op == "linear")
    assert choice.provider == "reference"
    assert [name for name, _ in choice.passed_over] == ["onednn", "batched"]


def test_auto_is_the_profiles_device(tmp_path: Path) -> None:
    found = built(tmp_path, device="simchip:clean", device_name="simchip:clean (simulated)")
    assert found.device.name == "simchip:clean (simulated)"
