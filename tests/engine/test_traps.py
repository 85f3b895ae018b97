"""The numeric traps of DeepSeek's models, one test each, under the numbers of the reference list (`engines.md`, 3).

Every test does two things: the engine agrees with the float64 oracle, and with the trap sprung (the wrong variant put
in the engine's place) the same comparison fails. So the comparison is known to see the trap. Traps 9 to 14, of routing,
are in `test_traps_routing.py`, 4 and 21 to 26, of FP8, in `test_traps_fp8.py`, 18 to 20, of the prediction layer, in
`test_traps_prediction.py`; 27 to 31, of text, are in `tests/gateway/`. Whether each sees its trap in the product's own
text, of every provider, is shown by `python -m benchmarks.traps`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import oracle
from tests.engine.checkpoints import R1, V2_LITE, weights, write
from tests.engine.driving import Driven
from tests.engine.judged import IDS, SPRUNG, TOLERANCE, Make, agrees
from tests.engine.op_cases import CASES
from torch import Tensor

from twinline.engine import worker
from twinline.engine.models import attention as attention_module
from twinline.engine.ops import batched
from twinline.engine.ops.plan import PrefillPlan
from twinline.engine.ops.registry import Ops, StaticFacts, candidates
from twinline.facts.models import UnsupportedModel, spec_from_config


def test_trap_01_latent_norm_and_what_the_cache_stores(case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm is over the latent only; the cache holds the normed latent and the rotated key that all heads share."""
    for config in (R1 | {"rms_norm_eps": 1e-2}, V2_LITE):
        c = case(config)
        assert c.agrees()
        c.line.logits(IDS)
        for layer, want in zip(c.line.engine.runner.cache, c.truth.cached, strict=True):
            held = layer[0].flatten(0, 2).cpu()
            distance = (held[:, None] - want[None].float()).abs().amax(-1).amin(0)
            assert distance.max() < TOLERANCE, "each position's row is somewhere in the cache"

        write_rows = c.ops.kv_write

        def norm_over_all(cache: Tensor, slots: Tensor, *parts: Tensor, write_rows: Any = write_rows) -> None:
            rows = torch.cat(parts, -1)
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
        size = cache.shape[2]
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


def test_trap_03_a_long_past_is_merged(case: Make) -> None:
    """Longer than what is attended to at once: parts of the past are merged by their log-sum-exp, whether a chunk
    expands them or a decode absorbs."""
    c = case(R1 | {"max_position_embeddings": 1024})
    ids = (IDS * 15)[:600]
    want = oracle.run(c.config, c.weights, ids).logits
    for way in ((), (263, 337), (590,) + (1,) * 10):
        assert agrees(((c.line.logits(ids, way) - want).abs().max() / want.abs().max()).item()), way


def test_trap_05_fast_attention_wants_heads_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's fast CPU kernel takes queries, keys and values of one head size; with others the slow path is taken,
    without a word. So values are padded, and what pads is cut off."""
    sizes: list[set[int]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **named: Any) -> Tensor:
        sizes.append({x.shape[-1] for x in args[:3]})
        return attend(*args, **named)

    def tried() -> None:
        sizes.clear()
        for name, args, want in CASES["mla_prefill"](torch.float32):
            assert (batched.mla_prefill(*args) - want).abs().max() < 1e-5, name

    monkeypatch.setattr(batched.F, "scaled_dot_product_attention", watched)
    tried()
    assert sizes and all(len(each) == 1 for each in sizes)
    monkeypatch.setattr(batched.F, "pad", lambda x, by: x)
    tried()
    assert any(len(each) > 1 for each in sizes), "sprung"


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
    """Slowed frequencies, mscale / mscale_all_dim on cos and sin, and the temperature squared on the softmax scale:
    always, although the sequence here is shorter than the original context."""
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
        m.setattr(c.line.model, "rope", type(rope)(c.ops, spec, 256, c.line.device))
        assert c.sprung(), "frequencies as before the stretch"


def test_trap_07_either_spelling(case: Make) -> None:
    """`rope_parameters`, where transformers 5 writes what was in `rope_scaling` and `rope_theta`."""
    new = {"rope_type": "yarn", "rope_theta": R1["rope_theta"]}
    new |= {name: value for name, value in R1["rope_scaling"].items() if name != "type"}
    config = {name: value for name, value in R1.items() if name not in ("rope_scaling", "rope_theta")}
    c = case(R1)
    folder = write(c.folder.parent / "newer", config | {"rope_parameters": new}, c.weights)
    assert spec_from_config(config | {"rope_parameters": new}) == spec_from_config(R1)
    c.line = Driven(folder)
    assert c.agrees()


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


def test_trap_15_experts_are_added_up_in_float32(order: tuple[str, ...], tmp_path: Path) -> None:
    line = Driven(write(tmp_path / "any", R1, weights(R1)), dtype="bfloat16")
    experts_are_added_up_in_float32(line.built.ops, line.device)


def test_trap_15_grouped_products_are_added_up_in_float32() -> None:
    facts = StaticFacts("cpu", torch.bfloat16)
    ((_, why_not),) = candidates("experts", ("grouped",), facts)
    if why_not is not None:
        pytest.skip(why_not)
    experts_are_added_up_in_float32(Ops(("grouped", "batched", "reference"), facts), torch.device("cpu"))


def experts_are_added_up_in_float32(ops: Ops, device: torch.device) -> None:
    """256 + seven halves - 256: bfloat16 has no room for the halves beside 256."""
    values = [256.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -256.0]
    count, inner, hidden = len(values), 4, 6
    # Expert e answers the row of ones with values[e] everywhere: silu(32) * 1 is 32 in bfloat16.
    gate_up = torch.zeros(count, 2 * inner, hidden)
    gate_up[:, 0, 0], gate_up[:, inner, 0] = 32.0, 1.0
    down = torch.zeros(count, hidden, inner)
    down[:, :, 0] = torch.tensor(values)[:, None] / 32
    packed = ops.experts.pack(gate_up.bfloat16().to(device), down.bfloat16().to(device))
    x = torch.ones(3, hidden, dtype=torch.bfloat16)
    chosen, weight = torch.arange(count).expand(3, -1), torch.ones(3, count)
    got = ops.experts(x.to(device), packed, chosen.to(device), weight.to(device)).cpu()
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
        spec = spec_from_config(R1 | changes)
        assert spec.experts is not None and spec.expert_layers == sparse, changes
        assert spec.experts.shared_inner == R1["moe_intermediate_size"] * ((R1 | changes)["n_shared_experts"] or 0)
        c = case(R1 | changes)
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
    assert (spec_from_config(config).layers, spec_from_config(config).predictor_layers) == (3, 1)
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
        assert torch.equal(gate.weight.cpu(), tensors[p + "mlp.gate.weight"])
        assert torch.equal(gate.bias.cpu(), tensors[p + "mlp.gate.e_score_correction_bias"])
        assert not torch.equal(gate.bias, gate.bias.bfloat16().float()), "a cast would be seen"
        assert torch.equal(c.layers[i].input_norm.weight.cpu(), tensors[p + "input_layernorm.weight"])
    assert torch.equal(c.line.model.embed.weight.cpu(), tensors["model.embed_tokens.weight"])


def test_trap_31_any_end_token_stops(case: Make, tmp_path: Path) -> None:
    """`eos_token_id` may be one number or a list; generation_config.json goes before config.json."""
    c = case(R1)
    (c.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 11]}))
    config = json.loads((c.folder / "config.json").read_text())
    (c.folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
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
    (c.folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 11}))
    assert worker.end_tokens(c.folder) == {11}
    (c.folder / "generation_config.json").unlink()
    assert worker.end_tokens(c.folder) == {11}
    assert worker.end_tokens(tmp_path) == frozenset()


def test_the_oracle_knows_nothing_of_the_engine() -> None:
    source = Path(oracle.__file__).read_text("utf-8")
    assert "twinline" not in source
