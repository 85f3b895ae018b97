"""The prediction layer of an FP8 checkpoint, as DeepSeek publishes it."""

from pathlib import Path

import pytest
import torch
from tests.engine.checkpoints import R1, weights, write
from tests.engine.driving import Driven, only
from tests.engine.predicting import patient
from tests.engine.quant import writers

SIZES = R1 | {"num_nextn_predict_layers": 1, "moe_intermediate_size": 128}


def test_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "reference")
    made = writers.fp8(weights(SIZES))
    a = Driven(write(tmp_path / "a", SIZES | {"quantization_config": made.config}, made.tensors), speculation="mtp")
    b = Driven(write(tmp_path / "b", SIZES, {n: t.float() for n, t in made.truth.items()}), speculation="mtp")
    ids = list(range(12))
    for line in (patient(a), patient(b)):
        line.submit("r", ids, max_tokens=40)
        line.run()
    assert [t for o in a.outputs["r"] for t in o.tokens] == [t for o in b.outputs["r"] for t in o.tokens]
    p, q = a.model.predictor, b.model.predictor
    assert torch.equal(p.layer.attention.out.packed, q.layer.attention.out.packed)
    assert torch.equal(p.of_embedding, q.of_embedding)
    assert p.layer.mlp.experts.form.kind == "fp8" and a.engine.counters == b.engine.counters
