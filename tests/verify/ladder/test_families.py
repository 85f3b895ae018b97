"""The ladder climbs with a model of each kind, on the simulated chip, whose ops are PyTorch's in software."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine import checkpoints
from tests.verify.ladder.climbing import bad, bench, climb

from twinline.verify.ladder.cases import cases
from twinline.verify.ladder.ops import used


@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral", "glm4", "ernie-moe"])
def test_ops_and_layers_of_every_kind_pass_on_a_clean_chip(family: str, tmp_path: Path) -> None:
    saved = checkpoints.save(family, tmp_path)
    one = bench("ops", "layers", model=saved.folder)
    one._supports = {torch.bfloat16: False, torch.float16: False}
    found = climb(one, "ops") + climb(one, "layers")
    assert not bad(found)
    assert {f.op for f in found if f.check.startswith("ops.")} == set(used(one))
    assert {"layers.attention.decode", "layers.attention.forms"} <= {f.check for f in found if f.verdict == "pass"}


def test_norms_over_heads_are_among_the_cases(tmp_path: Path) -> None:
    one = bench("ops", model=checkpoints.save("qwen3", tmp_path).folder)
    assert {14, 60} <= {case.args[0].shape[-1] for case in cases(one, "rms_norm", torch.float32)
                        if isinstance(case.args[0], torch.Tensor)}  # fmt: skip
