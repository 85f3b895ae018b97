"""What weighs how in a grade."""

from __future__ import annotations

from typing import Any

import pytest

from twinline.verify.ladder.finding import UNCLIMBED, Finding, Verdict
from twinline.verify.ladder.grade import grade

GOOD = Finding(check="ops.linear.batched.float32", verdict="pass", text="fine", op="linear", provider="batched")


def one(check: str, verdict: Verdict = "fail", **more: Any) -> Finding:
    return Finding(check=check, verdict=verdict, text="so it was", **more)


def test_where_nothing_is_found_it_is_sound() -> None:
    found = grade([GOOD, one("speed.probes", "note"), one("tasks", "skipped")], "float32")
    assert found.name == "sound" and found.serves and "1 checks passed" in found.rule


def test_where_nothing_was_tried_nothing_is_known() -> None:
    assert grade([one("tasks", "skipped")], "float32").name == "unfit"


@pytest.mark.parametrize(
    "finding",
    [
        one("ops.linear.any.float32", op="linear", dtype="float32"),
        one("device.aten.sort", "limit", figures={"needed_by": "sampler"}),
        one("device.aten.mul", figures={"needed_by": "every op"}),
        one("device.dtypes.float32"),
        one("device.copies"),
        one("device.memory"),
        one("device.oom"),
        one("model.logprobs.17"),
        one("layers.mlp"),
        one("long.drift"),
        one("tasks.accuracy"),
        one("faults.lost"),
        one("speed.linear", rule="the process lives"),
        one("collectives.sum", rule="answers within 20 s"),
        one("device.random", rule="the device lives"),
    ],
)
def test_what_nothing_can_stand_in_for_makes_it_unfit(finding: Finding) -> None:
    found = grade([GOOD, finding], "float32")
    assert found.name == "unfit" and not found.serves and finding.check in found.reasons
    assert found.rule.startswith("unfit: ") and "so it was" in found.rule


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (one("ops.linear.batched.float32", op="linear", provider="batched", dtype="float32"),
         "batched does not serve linear in float32"),
        (one("ops.linear.any.bfloat16", op="linear", dtype="bfloat16"), "bfloat16 is not to be used"),
        (one("device.dtypes.bfloat16", "limit"), "bfloat16 is not to be used"),
        (one("device.aten.topk", "limit", figures={"needed_by": "route"}), "aten topk is missing (needed by route)"),
        (one("device.copies.peer"), "device.copies.peer fails"),
        (one("device.random"), "device.random fails"),
        (one("collectives.sum"), "it serves alone"),
        (one("speed.linear", "limit", op="linear"), "linear is slow"),
        (one("determinism.repeat", "limit"), "it does not repeat itself"),
        (one("long.memory", "limit"), "long.memory meets a limit"),
    ],
)  # fmt: skip
def test_what_can_be_left_out_limits(finding: Finding, said: str) -> None:
    found = grade([GOOD, finding], "float32")
    assert found.name == "limited" and found.serves and said in found.rule and found.reasons == (finding.check,)


@pytest.mark.parametrize("level", ["device", "ops"])
def test_a_level_that_could_not_be_climbed_leaves_nothing_to_trust(level: str) -> None:
    found = grade([GOOD, one(level, rule=UNCLIMBED)], "float32")
    assert found.name == "unfit" and f"level {level} could not be climbed" in found.rule


def test_a_speed_that_could_not_be_measured_is_not_called_slow() -> None:
    assert "speed fails" in grade([GOOD, one("speed")], "float32").rule


def test_refusals_of_one_op_are_one_phrase() -> None:
    refused = [one(f"ops.rope.batched.{d}", op="rope", provider="batched", dtype=d) for d in ("float32", "float16")]
    assert "batched does not serve rope in float32, float16" in grade([GOOD, *refused], "float32").rule


def test_the_gravest_is_told_first_and_part_of_a_ladder_is_said_to_be_part() -> None:
    found = grade([GOOD, one("speed.linear", "limit"), one("model.router")], "float32", complete=False)
    assert found.name == "unfit" and found.reasons == ("model.router",)
    assert found.rule.startswith("unfit (not the whole ladder): ")


def test_determinism_is_graded_beside() -> None:
    found = grade([GOOD, one("determinism.repeat", "pass"), one("determinism.order", "pass"),
                   one("determinism.batch", "note", figures={"rows": 200, "same": 50})], "float32")  # fmt: skip
    assert found.name == "sound"
    assert found.determinism == {"run to run": "bitwise", "first or last in a batch": "bitwise",
                                 "alone or in a batch": "25% of rows bitwise"}  # fmt: skip
