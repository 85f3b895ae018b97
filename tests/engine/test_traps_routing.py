"""The numeric traps of routing (`engines.md`, 3.9 to 3.14), sprung one by one as in `test_traps.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.engine import oracle
from tests.engine.checkpoints import R1, V2, V2_LITE, weights, write
from tests.engine.driving import Driven
from tests.engine.judged import Make, judge
from torch import Tensor

from twinline.facts.models import spec_from_config


def variant(**wrong: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """Routing written once more with one thing wrong, for springing traps."""

    def route(x: Tensor, gate: Tensor, bias: Tensor | None, e: Any) -> tuple[Tensor, Tensor]:
        kind = wrong.get("gate", torch.float32)
        logits = F.linear(x.to(kind), gate.to(kind)).float()
        scores = logits.sigmoid() if e.score == "sigmoid" else logits.softmax(-1)
        bias = torch.zeros_like(gate[:, 0]) if bias is None else bias.to(wrong.get("bias", torch.float32)).float()
        choice = (scores + bias).to(wrong.get("choice", torch.float32))
        if e.limit != "none":
            grouped = choice.view(len(choice), e.groups, -1)
            best = wrong.get("best", 2 if e.limit == "top2" else 1)
            kept = grouped.topk(best, -1).values.sum(-1).topk(e.groups_kept, -1).indices
            out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, kept, False)
            choice = grouped.masked_fill(out[..., None], wrong.get("mask", -math.inf)).flatten(1)
        chosen = choice.topk(e.per_token, -1).indices
        unbiased = (scores + bias) - bias if wrong.get("subtract") else scores
        weight = ((scores + bias) if wrong.get("biased_weight") else unbiased).gather(1, chosen)
        if wrong.get("normalise", e.normalise):
            weight = weight / (weight.sum(-1, keepdim=True) + wrong.get("epsilon", 1e-20))
        return chosen, weight * wrong.get("scale", e.scale)

    return route


@pytest.fixture
def route(order: tuple[str, ...], tmp_path: Path) -> Any:
    """The device's own routing, of tensors on the host."""
    line = Driven(write(tmp_path / "any", R1, weights(R1)))

    def there(x: Tensor, gate: Tensor, bias: Tensor | None, e: Any) -> tuple[Tensor, Tensor]:
        moved = (None if t is None else t.to(line.device) for t in (x, gate, bias))
        chosen, weight = line.built.ops.route(*moved, e)
        return chosen.cpu(), weight.cpu()

    return there


def rows(logits: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Hidden rows and a gate whose product is exactly these logits: the gate is the identity."""
    x = torch.tensor(logits)
    return x, torch.eye(x.shape[1])


def random_rows(count: int = 200, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, 32, generator=draw).to(dtype), torch.randn(8, 32, generator=draw) / 32**0.5


def test_the_variant_is_right_when_nothing_is_wrong(route: Any) -> None:
    """Else a trap that it springs would prove nothing."""
    bias = torch.rand(8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    for config in (R1, V2, V2_LITE):
        b = bias if config is R1 else None
        assert judge(config, variant(), *random_rows(), b) < 1e-5
        assert judge(config, route, *random_rows(), b) < 1e-5


def test_trap_09_the_gate_is_float32(route: Any, case: Make) -> None:
    """In a bfloat16 model too: its logits decide between experts that bfloat16 cannot tell apart."""
    x, gate = random_rows(400, torch.bfloat16)
    bias = torch.zeros(8)
    assert judge(R1, route, x, gate, bias) < 1e-5
    assert judge(R1, variant(gate=torch.bfloat16), x, gate, bias) > 1e-2
    line = case(R1, dtype="bfloat16").line
    for layer in line.model.layers[1:]:
        assert layer.mlp.gate.weight.dtype == torch.float32


def test_trap_10_the_bias_chooses_and_never_weighs(route: Any, case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case(R1)
    assert c.agrees()
    with monkeypatch.context() as m:
        m.setattr(c.ops, "route", variant(biased_weight=True))
        assert c.sprung(), "weights gathered from the biased scores"
    gate = c.layers[1].mlp.gate
    with monkeypatch.context() as m:
        m.setattr(gate, "forward", lambda x: c.ops.route(x, gate.weight, torch.zeros_like(gate.bias), gate.e))
        assert c.sprung(), "no bias in the choice"
    # Balancing moves a bias by a thousandth at a time: bfloat16 cannot hold 0.5 + 0.001.
    x, identity = rows([[0.0] * 8])
    one = R1 | {"num_experts_per_tok": 1}
    seen = []
    for best in range(8):
        bias = torch.full((8,), 0.5)
        bias[best] = 0.5003
        assert judge(one, route, x, identity, bias) < 1e-5
        seen.append(judge(one, variant(bias=torch.bfloat16), x, identity, bias))
    assert max(seen) > 0.5


def test_trap_10_the_bias_is_kept_in_float32(case: Make) -> None:
    """In a bfloat16 model too, bit for bit: a bias that has moved by a thousandth chooses other experts."""
    tensors = {n: t if "mlp.gate." in n else t.bfloat16() for n, t in weights(R1).items()}
    line = case(R1 | {"dtype": "bfloat16"}, tensors, dtype="auto").line
    for i in (1, 2):
        bias, want = line.model.layers[i].mlp.gate.bias, tensors[f"model.layers.{i}.mlp.gate.e_score_correction_bias"]
        assert bias.dtype == torch.float32 and torch.equal(bias.cpu(), want)
        assert not torch.equal(want, want.bfloat16().float()), "a cast would be seen"


def test_trap_11_the_unbiased_score_is_not_recovered_by_subtraction(route: Any) -> None:
    """Bias +12 and a sigmoid near 1e-8: biased - bias is 0 in float32 (flashinfer#3875)."""
    x, gate = rows([[-18.0, -17.0, -19.0, -18.5, 3.0, 4.0, 5.0, 6.0], [-18.2, -18.4, -20.0, -16.0, 0.0, 0.0, 0.0, 0.0]])
    bias = torch.tensor([12.0, 12.5, 13.0, 12.25, 0.0, 0.0, 0.0, 0.0])
    assert judge(R1, route, x, gate, bias) < 1e-5
    assert judge(R1, variant(subtract=True), x, gate, bias) > 0.1


def test_trap_12_groups(route: Any, case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group scores the sum of its two best (V3) or its best (V2); the others are masked with -inf, not 0."""
    # Pairs are groups. Best single expert in group 0, best pair in groups 1 and 2.
    x, gate = rows([[2.0, -9.0, 1.5, 1.4, 1.3, 1.45, -9.0, -9.0]])
    assert judge(R1, route, x, gate, torch.zeros(8)) < 1e-5
    assert judge(R1, variant(best=1), x, gate, torch.zeros(8)) > 0.1, "V3 by the best alone"
    assert judge(V2, route, x, gate, None) < 1e-5
    assert judge(V2, variant(best=2), x, gate, None) > 0.01, "V2 by the sum of two"
    # With negative biases every allowed expert scores below 0, the value of a wrong mask.
    x, gate = random_rows()
    bias = torch.full((8,), -3.0)
    assert judge(R1, route, x, gate, bias) < 1e-5
    assert judge(R1, variant(mask=0.0), x, gate, bias) > 0.1
    tensors = weights(R1)
    for name in tensors:
        if name.endswith("e_score_correction_bias"):
            tensors[name] = tensors[name] - 4
    c = case(R1, tensors)
    assert c.agrees()
    with monkeypatch.context() as m:
        m.setattr(c.ops, "route", variant(mask=0.0))
        assert c.sprung()
    c = case(V2)
    assert c.agrees()
    with monkeypatch.context() as m:
        m.setattr(c.ops, "route", variant(best=2))
        assert c.sprung()


def test_trap_13_normalise_then_scale(route: Any, case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """V3 normalises, with 1e-20 against division by zero, and then scales; V2-Lite does neither."""
    for config, wrong in ((R1, {"normalise": False}), (R1, {"scale": 1.0}), (V2_LITE, {"normalise": True}),
                          (V2, {"normalise": True}), (V2, {"scale": 1.0})):  # fmt: skip
        c = case(config)
        assert c.agrees()
        with monkeypatch.context() as m:
            m.setattr(c.ops, "route", variant(**wrong))
            assert c.sprung(), wrong
    x, gate = rows([[-200.0] * 8])
    with torch.no_grad():
        chosen, weight = route(x, gate, torch.zeros(8), spec_from_config(R1).experts)
    assert weight.isfinite().all() and len(set(chosen[0].tolist())) == 3
    assert variant(epsilon=0.0)(x, gate, torch.zeros(8), spec_from_config(R1).experts)[1].isnan().any()


def test_trap_14_ties(route: Any) -> None:
    """Scores that differ in float32 only are told apart; equal ones give a choice that no unchosen expert beats."""
    step = 2e-4  # of a sigmoid near 0.73: two hundred times float32's spacing, a tenth of bfloat16's
    apart = [0.0, 5.2, 1.1, 12.6, 2.3, 9.1, 3.9, 7.7]
    near = [[1.0 + step * apart[(e + shift) % 8] for e in range(8)] for shift in range(8)]
    x, gate = rows(near)
    free = R1 | {"n_group": 1, "topk_group": 1}
    for config in (R1, free):
        assert judge(config, route, x, gate, torch.zeros(8)) < 1e-5
        assert judge(config, variant(choice=torch.bfloat16), x, gate, torch.zeros(8)) > 0.1

    for config in (R1, free, V2, V2_LITE):
        experts = spec_from_config(config).experts
        assert experts is not None
        for row in ([0.5] * 8, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9], [1.0, 0.0] * 4):
            x, gate = rows([row])
            bias = torch.zeros(8) if experts.correction_bias else None
            chosen, weight = route(x, gate, bias, experts)
            want = oracle.route(config, row, [0.0] * 8)
            assert len(set(chosen[0].tolist())) == 3
            assert sorted(weight[0].tolist()) == pytest.approx(sorted(want.values()), rel=1e-5)
            groups = {e * experts.groups // 8 for e in chosen[0].tolist()}
            assert len(groups) <= experts.groups_kept or experts.limit == "none"
