"""A finding goes through JSON whole, and its command repeats it."""

from __future__ import annotations

import math
import shlex

import msgspec

from twinline.verify.ladder import messages
from twinline.verify.ladder.finding import Finding, Trial


def test_a_figure_that_is_no_number_arrives_as_a_word() -> None:
    sent = Finding(check="model.trace", verdict="fail", text="x",
                   figures={"a": math.nan, "b": -math.inf, "c": 2.5, "d": 3, "e": "word"})  # fmt: skip
    got = messages.DECODER.decode(msgspec.json.encode(messages.Found(finding=sent)))
    assert isinstance(got, messages.Found)
    assert got.finding.figures == {"a": "nan", "b": "-inf", "c": 2.5, "d": 3, "e": "word"}


def test_a_command_is_one_that_a_shell_takes() -> None:
    trial = Trial(device="simchip:clean", model="/models/a b; c", dtype="bfloat16", seed=3)
    assert shlex.split(trial.command("ops.linear")) == [
        "twinline", "adapt", "--device", "simchip:clean", "--model", "/models/a b; c", "--seed", "3", "--dtype",
        "bfloat16", "--only", "ops.linear"]  # fmt: skip


def test_what_was_made_already_is_left_out_and_nothing_below_it() -> None:
    trial = Trial(device="cpu", model="m", skip=("device.copies",))
    assert not trial.wants("device.copies") and trial.wants("device.copies.peer") and trial.wants("device")
