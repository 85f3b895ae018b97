"""The numeric traps of DeepSeek's models, one test each, under the numbers of the reference list (`engines.md`, 3).

Every test does two things: the engine agrees with the float64 oracle, and with the trap sprung (the wrong variant put in
the engine's place) the same comparison fails. So the comparison is known to see the trap.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.engine import oracle
from tests.engine.checkpoints import R1, V2, V2_LITE, Config, Weights, weights, write
from tests.engine.driving import Driven
from twinline.engine import worker
from twinline.engine.models import attention as attention_module
from twinline.engine.ops.plan import PrefillPlan
from twinline.facts.models import UnsupportedModel, spec_from_config

TOLERANCE = 1e-4  # of the largest |logit|, float32
SPRUNG = 10 * TOLERANCE  # a sprung trap is seen with room to spare
IDS = random.Random(1).choices(range(R1["vocab_size"]), k=41)
WAYS = ((), (17, 24), (16, 9) + (1,) * 16)  # whole, in chunks, and decoding one by one


class Case:
    """A crafted checkpoint, the engine on it, and the oracle's answer."""

    def __init__(self, folder: Path, config: Config = R1, tensors: Weights | None = None, **options: Any) -> None:
        self.config, self.weights = config, weights(config) if tensors is None else tensors
        self.folder = write(folder, config, self.weights)
        self.truth = oracle.run(config, self.weights, IDS)
        self.options = options
        self.line = Driven(self.folder, **options)

    @property
    def ops(self) -> Any:
        return self.line.built.ops

    @property
    def layers(self) -> Any:
        return self.line.model.layers

    def errors(self) -> list[float]:
        """Of each way through the sequence, relative to the largest |logit|; NaN counts as infinite."""
        want = self.truth.logits
        found = [((self.line.logits(IDS, way) - want).abs().max() / want.abs().max()).item() for way in WAYS]
        return [math.inf if math.isnan(e) else e for e in found]

    def agrees(self) -> bool:
        return max(self.errors()) <= TOLERANCE

    def sprung(self) -> bool:
        """Some way through the sequence gives clearly wrong numbers."""
        return max(self.errors()) > SPRUNG


@pytest.fixture
def case(tmp_path: Path, order: tuple[str, ...]) -> Callable[..., Case]:
    made = iter(range(10**6))

    def make(config: Config = R1, tensors: Weights | None = None, **options: Any) -> Case:
        return Case(tmp_path / str(next(made)), config, tensors, **options)

    return make


Make = Callable[..., Case]


def test_trap_01_latent_norm_and_what_the_cache_stores(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm is over the latent only; the cache holds the normed latent and the rotated key that all heads share."""
    for config in (R1 | {"rms_norm_eps": 1e-2}, V2_LITE):
        c = case(config)
        assert c.agrees()
        pages = c.line.engine.pool.allocate(3)
        c.line.engine.pool.release(pages)
        c.line.logits(IDS)
        for layer, want in zip(c.line.engine.runner.cache, c.truth.cached, strict=True):
            held = layer[0].flatten(0, 1)
            distance = (held[:, None] - want[None].float()).abs().amax(-1).amin(0)
            assert distance.max() < TOLERANCE, "each position's row is somewhere in the cache"

        write_rows = c.ops.kv_write

        def norm_over_all(cache: Tensor, slots: Tensor, rows: Tensor, write_rows: Any = write_rows) -> None:
            write_rows(cache, slots, rows / rows.pow(2).mean(-1, keepdim=True).sqrt())

        with monkeypatch.context() as m:
            m.setattr(c.ops, "kv_write", norm_over_all)
            assert c.sprung()
        for part in ("kv_norm", "q_norm"):
            if getattr(c.layers[1].attention, part) is None:
                continue
            with monkeypatch.context() as m:
                m.setattr(getattr(c.layers[1].attention, part), "forward", lambda x: x)
                assert c.sprung(), f"without {part}"
        turn = c.ops.rope
        with monkeypatch.context() as m:
            m.setattr(c.ops, "rope", lambda x, *more, turn=turn: x if x.shape[1] == 1 else turn(x, *more))
            assert c.sprung(), "the shared key was not rotated"
    c = case(R1)
    with monkeypatch.context() as m:
        m.setattr(attention_module, "LATENT_NORM_EPS", 1e-2)
        c.line = Driven(c.folder)
    assert c.sprung(), "the latents' norms have their own eps"


def test_trap_02_rows_are_split_head_by_head(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """q_b rows are [nope | rope] per head, kv_b rows [k_nope | v] per head; not all of one kind and then the other."""
    c = case(R1)
    assert c.agrees()
    a = c.layers[1].attention
    heads, nope, rope, value = (R1[n] for n in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim",
                                                "v_head_dim"))  # fmt: skip
    with monkeypatch.context() as m:
        m.setattr(a, "uk_HdC", a.kv_up.data[: heads * nope].view(heads, nope, -1))
        m.setattr(a, "uv_HvC", a.kv_up.data[heads * nope :].view(heads, value, -1))
        assert c.sprung(), "kv_b split globally"
    right = a.q_up.forward

    def globally(x: Tensor) -> Tensor:
        y = right(x)
        first, last = y[:, : heads * nope], y[:, heads * nope :]
        return torch.cat((first.reshape(-1, heads, nope), last.reshape(-1, heads, rope)), -1).flatten(1)

    with monkeypatch.context() as m:
        m.setattr(a.q_up, "forward", globally)
        assert c.sprung(), "q_b split globally"


def test_trap_03_expanded_prefill_and_absorbed_decode_are_one_attention(
    case: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = case(R1)
    whole, chunked, decoded = c.errors()
    assert max(whole, chunked, decoded) <= TOLERANCE
    prefill, decode, absorb = c.ops.mla_prefill, c.ops.mla_decode, c.ops.mla_absorb

    def forgets_past(
        q: Tensor, q_pe: Tensor, cache: Tensor, uk: Tensor, uv: Tensor, plan: PrefillPlan, scale: float
    ) -> Tensor:
        size = cache.shape[1]
        if plan.past % size:
            return prefill(q, q_pe, cache, uk, uv, plan, scale)
        alone = PrefillPlan(plan.start, plan.end, 0, plan.pages_P[plan.past // size :])
        return prefill(q, q_pe, cache, uk, uv, alone, scale)

    with monkeypatch.context() as m:
        m.setattr(c.ops, "mla_prefill", forgets_past)
        whole, _, decoded = c.errors()
        assert whole <= TOLERANCE, "the first chunk has no past to forget"
        assert decoded > SPRUNG, "a later chunk forgot its past"
    with monkeypatch.context() as m:
        m.setattr(c.ops, "mla_decode", lambda q, q_pe, *more: decode(q, torch.zeros_like(q_pe), *more))
        whole, chunked, decoded = c.errors()
        assert max(whole, chunked) <= TOLERANCE and decoded > SPRUNG, "only decodes are absorbed"
    a = c.layers[1].attention
    with monkeypatch.context() as m:
        swapped = a.uv_HvC.flip(0)
        m.setattr(c.ops, "mla_absorb", lambda x, w: absorb(x, swapped.transpose(1, 2) if w.shape[1] == 18 else w))
        assert c.errors()[2] > SPRUNG, "W_UV of another head"


def test_trap_06_rope_pairs_are_interleaved(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (R1, V2_LITE):
        c = case(config)
        assert c.agrees()
        turn = c.ops.rope
        with monkeypatch.context() as m:
            m.setattr(c.ops, "rope", lambda x, cos, sin, interleaved, turn=turn: turn(x, cos, sin, False))
            assert c.sprung()


@pytest.mark.parametrize(("mscale", "all_dim"), [(1.0, 1.0), (0.707, 0.707), (1.0, 0.5)])
def test_trap_07_yarn(mscale: float, all_dim: float, case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowed frequencies, the factor mscale / mscale_all_dim on cos and sin, and its square on the softmax scale: always,
    although the sequence here is shorter than the original context."""
    scaling = R1["rope_scaling"] | {"mscale": mscale, "mscale_all_dim": all_dim}
    config = R1 | {"rope_scaling": scaling}
    assert len(IDS) < scaling["original_max_position_embeddings"]
    c = case(config)
    assert c.agrees()
    for layer in c.layers:
        a = layer.attention
        with monkeypatch.context() as m:
            m.setattr(a, "a", dataclasses.replace(a.a, scale=(a.a.nope + a.a.rope) ** -0.5))
            assert c.sprung(), "the plain softmax scale"
    rope = c.line.model.rope
    factor = 0.1 * math.log(40) + 1
    for wrong in (factor, 1 / factor):
        with monkeypatch.context() as m:
            m.setattr(rope, "cos", rope.cos * wrong)
            m.setattr(rope, "sin", rope.sin * wrong)
            assert c.sprung(), "the temperature on cos and sin as well"
    without = spec_from_config(config | {"rope_scaling": None}).rope
    with monkeypatch.context() as m:
        spec = dataclasses.replace(c.line.built.spec, rope=without)
        m.setattr(c.line.model, "rope", type(rope)(spec, 256, torch.device("cpu")))
        assert c.sprung(), "frequencies as before the stretch"


def test_trap_07_the_scale_of_r1() -> None:
    """192^-1/2 * (0.1 ln 40 + 1)^2: 1.874 times the plain one (engines.md 3.7)."""
    real = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    ratio = spec_from_config(R1 | real).attention.scale / 192**-0.5
    assert ratio == pytest.approx(1.8739, abs=1e-4)


def test_trap_08_scaled_once_and_explicitly(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case(R1)
    assert c.agrees()
    for op in ("mla_prefill", "mla_decode"):
        right = getattr(c.ops, op)
        way = 0 if op == "mla_prefill" else 2
        with monkeypatch.context() as m:
            m.setattr(c.ops, op, lambda q, q_pe, *more, right=right: right(q * more[-1], q_pe * more[-1], *more))
            assert c.errors()[way] > SPRUNG, f"{op}: q scaled as well"
        with monkeypatch.context() as m:
            m.setattr(c.ops, op, lambda *all_, right=right: right(*all_[:-1], (all_[0].shape[-1] + 8) ** -0.5))
            assert c.errors()[way] > SPRUNG, f"{op}: the default scale of its own width"


# Routing. `judge` compares one routing op with the oracle, token by token.


def judge(config: Config, route: Any, x: Tensor, gate: Tensor, bias: Tensor | None) -> float:
    """The largest difference in any expert's weight, relative to the routed scale; infinite for NaN.

    A different choice is a difference of that expert's whole weight. Logits are float64 of the operands given.
    """
    spec = spec_from_config(config).experts
    chosen, weight = route(x, gate, bias, spec)
    logits = x.double() @ gate.double().T
    biases = [0.0] * len(gate) if bias is None else bias.double().tolist()
    worst = 0.0
    for row, c, w in zip(logits.tolist(), chosen.tolist(), weight.tolist(), strict=True):
        assert len(set(c)) == len(c), "an expert chosen twice"
        want, got = oracle.route(config, row, biases), dict(zip(c, w, strict=True))
        worst = max([worst, *(abs(want.get(e, 0.0) - got.get(e, 0.0)) for e in want.keys() | got.keys())])
        if any(math.isnan(v) for v in w):
            return math.inf
    return worst / config["routed_scaling_factor"]


def variant(**wrong: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """Routing written once more with one thing wrong, for springing traps."""

    def route(x: Tensor, gate: Tensor, bias: Tensor | None, e: Any) -> tuple[Tensor, Tensor]:
        kind = wrong.get("gate", torch.float32)
        logits = F.linear(x.to(kind), gate.to(kind)).float()
        scores = logits.sigmoid() if e.score == "sigmoid" else logits.softmax(-1)
        bias = torch.zeros(len(gate)) if bias is None else bias.to(wrong.get("bias", torch.float32)).float()
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
    return Driven(write(tmp_path / "any", R1, weights(R1))).built.ops.route


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
        m.setattr(gate, "forward", lambda x: c.ops.route(x, gate.weight, torch.zeros(8), gate.e))
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


def test_trap_15_experts_are_added_up_in_float32(order: tuple[str, ...], tmp_path: Path) -> None:
    """256 + seven halves - 256: bfloat16 has no room for the halves beside 256."""
    ops = Driven(write(tmp_path / "any", R1, weights(R1)), dtype="bfloat16").built.ops
    values = [256.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -256.0]
    count, inner, hidden = len(values), 4, 6
    # Expert e answers the row of ones with values[e] everywhere: silu(32) * 1 is 32 in bfloat16.
    gate_up = torch.zeros(count, 2 * inner, hidden)
    gate_up[:, 0, 0], gate_up[:, inner, 0] = 32.0, 1.0
    down = torch.zeros(count, hidden, inner)
    down[:, :, 0] = torch.tensor(values)[:, None] / 32
    packed = ops.experts.pack(gate_up.bfloat16(), down.bfloat16())
    x = torch.ones(3, hidden, dtype=torch.bfloat16)
    chosen, weight = torch.arange(count).expand(3, -1), torch.ones(3, count)
    got = ops.experts(x, packed, chosen, weight)
    assert got.dtype == torch.bfloat16
    assert got.float().sub(3.5).abs().max() <= 0.02
    total = torch.zeros(hidden, dtype=torch.bfloat16)
    for value in values:
        total = total + value
    assert total.float().sub(3.5).abs().max() > 1, "adding in bfloat16 would not be seen"


def test_trap_16_dense_layers_and_the_shared_expert(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """`first_k_dense_replace` dense layers, then every `moe_layer_freq`-th has experts; the shared one is as wide as
    `n_shared_experts` together, and is added once, unweighted."""
    for changes, sparse in (
        ({"first_k_dense_replace": 1}, {1, 2}),
        ({"first_k_dense_replace": 0}, {0, 1, 2}),
        ({"first_k_dense_replace": 3}, set()),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, {2}),
        ({"n_shared_experts": 1}, {1, 2}),
        ({"n_shared_experts": None}, {1, 2}),
    ):
        c = case(R1 | changes)
        assert c.line.built.spec.expert_layers == sparse
        assert c.agrees(), changes
        wrong = dataclasses.replace(c.line.built.spec, expert_layers=frozenset({0, 1, 2} - sparse))
        with monkeypatch.context() as m, pytest.raises(UnsupportedModel):
            m.setattr("twinline.engine.build.read_spec", lambda folder, wrong=wrong: wrong)
            Driven(c.folder)
    c = case(R1)
    shared = c.layers[1].mlp.shared
    right = shared.forward
    for factor in (2.5, 0.5, 0.0):
        with monkeypatch.context() as m:
            m.setattr(shared, "forward", lambda x, factor=factor: right(x) * factor)
            assert c.sprung(), f"the shared expert times {factor}"


def test_trap_17_prediction_layers_are_not_layers(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's layer past the last is for multi-token prediction: known by name, never run as a layer."""
    config = R1 | {"num_nextn_predict_layers": 1}
    c = case(config)
    names = {n.removeprefix("model.layers.3.") for n in c.weights if n.startswith("model.layers.3.")}
    assert {"embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight",
            "shared_head.head.weight"} < names  # fmt: skip
    assert len(c.layers) == 3 and c.line.built.spec.predictor_layers == 1
    assert c.agrees()
    # Published R1 configurations carry the field or not; the layer is ignored by its number.
    assert case(config | {"num_nextn_predict_layers": 0}, c.weights).agrees()
    one_more = dataclasses.replace(c.line.built.spec, layers=4, expert_layers=frozenset({1, 2, 3}))
    own = {f"model.layers.3.{n}" for n in names if n.split(".")[0] not in ("self_attn", "mlp")}
    own -= {"model.layers.3.input_layernorm.weight", "model.layers.3.post_attention_layernorm.weight"}
    as_layer = write(c.folder.parent / "as-layer", config, {n: t for n, t in c.weights.items() if n not in own})
    with monkeypatch.context() as m:
        m.setattr("twinline.engine.build.read_spec", lambda folder: one_more)
        c.line = Driven(as_layer)
    assert c.sprung()


def test_trap_22_what_keeps_its_precision(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bfloat16 model the gate and its bias stay float32, bit for bit; embedding and norms are the checkpoint's own
    bfloat16; the trap is a loader that casts the whole file."""
    tensors = {n: t if "mlp.gate." in n else t.bfloat16() for n, t in weights(R1).items()}
    c = case(R1 | {"dtype": "bfloat16"}, tensors, dtype="auto")
    assert c.line.built.dtype == torch.bfloat16
    for i in (1, 2):
        gate, p = c.layers[i].mlp.gate, f"model.layers.{i}."
        assert torch.equal(gate.weight, tensors[p + "mlp.gate.weight"])
        assert torch.equal(gate.bias, tensors[p + "mlp.gate.e_score_correction_bias"])
        assert not torch.equal(gate.bias, gate.bias.bfloat16().float()), "a cast would be seen"
        assert torch.equal(c.layers[i].input_norm.weight, tensors[p + "input_layernorm.weight"])
    assert torch.equal(c.line.model.embed.weight, tensors["model.embed_tokens.weight"])


def test_trap_31_any_end_token_stops(case: Make, tmp_path: Path) -> None:
    """`eos_token_id` may be one number or a list; generation_config.json goes before config.json."""
    c = case(R1)
    (c.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 11]}))
    ends = worker.end_tokens(c.folder)
    assert ends == {7, 11}

    def finish(stops: frozenset[int]) -> tuple[str | None, int | None]:
        line = Driven(c.folder)
        line.submit("r", IDS[:5], max_tokens=6, stop_token_ids=stops, logit_bias=((11, 1000.0),))
        line.run()
        last = line.outputs["r"][-1]
        return last.finish, last.stop_token

    assert finish(ends) == ("stop", 11)
    assert finish(frozenset([7])) == ("length", None), "only the first of the list"
    (c.folder / "generation_config.json").write_text("{}")
    config = json.loads((c.folder / "config.json").read_text())
    (c.folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 11}))
    assert worker.end_tokens(c.folder) == {11}
    (c.folder / "generation_config.json").unlink()
    assert worker.end_tokens(c.folder) == {11}
    assert worker.end_tokens(tmp_path) == frozenset()


def test_the_oracle_knows_nothing_of_the_engine() -> None:
    source = Path(oracle.__file__).read_text("utf-8")
    assert "twinline" not in source
