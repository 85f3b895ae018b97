"""Level 2: a sound chip's layers pass, and an error that single ops allow is found where it adds up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.verify.ladder.climbing import bad, bench, changed, climb, planted

from twinline.verify.ladder import layers, rules


def test_clean_layers_pass() -> None:
    found = climb(bench("layers"), "layers")
    assert not bad(found)
    assert [f.check for f in found] == ["layers.rope", "layers.norm", "layers.attention.prefill",
                                        "layers.attention.chunked", "layers.attention.decode",
                                        "layers.attention.forms", "layers.mlp", "layers.experts",
                                        "layers.head"]  # fmt: skip
    experts = next(f for f in found if f.check == "layers.experts")
    assert experts.figures["wrong_rows"] == 0 and int(experts.figures["sure_rows"]) > 100


@pytest.mark.parametrize(
    ("aten", "change", "check"),
    [
        ("scaled_dot_product_attention", lambda x: x * 1.001, "layers.attention.prefill"),
        ("softmax", lambda x: x.bfloat16().float(), "layers.attention.decode"),
        ("softmax", lambda x: x * 1.01, "layers.attention.forms"),
        ("silu", lambda x: x * 1.001, "layers.mlp"),
        ("silu", lambda x: x * 1.001, "layers.experts"),
        ("rms_norm", lambda x: x.bfloat16().float(), "layers.norm"),
        ("linear", lambda x: x * 1.0001, "layers.head"),
    ],
)
def test_a_wrong_part_is_found_in_its_layer(aten: str, change: Any, check: str) -> None:
    with planted(bench(check), changed(aten, change)) as one:
        found = climb(one, "layers")
    assert {f.check for f in bad(found)} == {check}


def test_a_router_that_chooses_otherwise_is_told_as_such() -> None:
    def other(call: Any, out: Any) -> Any:
        return (out[0], out[1].roll(1, 0)) if isinstance(out, tuple) else out

    with planted(bench("layers.experts"), lambda chip: chip.plant(["topk"], after=other)) as one:
        (found,) = bad(climb(one, "layers"))
    assert found.op == "route" and "go to other experts" in found.text


def test_what_breaks_is_a_finding() -> None:
    def broken(call: Any) -> None:
        raise RuntimeError("kernel launch failed")

    with planted(bench("layers.norm"), lambda chip: chip.plant(["rms_norm"], before=broken)) as one:
        (found,) = climb(one, "layers")
    assert found.verdict == "fail" and "kernel launch failed" in found.text and found.op == "add_rms_norm"
    assert torch.ones(1).item() == 1


def test_the_rule_that_is_told_is_the_one_that_judges() -> None:
    """Layers: 7.5, 2.25 and 2.25 times the reference chip's errors."""
    assert rules.ATTENTION.times(layers.WIDER) == rules.Limits(7.5, 2.25, 2.25, bias=16.0)
    assert "7.5, 2.25 and 2.25 times" in layers.RULE
