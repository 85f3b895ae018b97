"""What is easily got wrong in Qwen3, Mixtral, GLM, ChatGLM and ERNIE: `engines.md`, 3, "others in scope", and traps 9,
10, 13, 16, 22 and 31 where these families have them.

As in `test_traps.py`: the engine agrees with `transformers` in float32, and with the trap sprung the same comparison
fails.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.checkpoints import FAMILIES, Config, Saved, rewrite
from tests.engine.driving import Driven
from tests.engine.judged import WAYS, Verdict, agrees, sprung
from tests.engine.test_traps_routing import variant
from torch import Tensor

from twinline.engine import worker
from twinline.engine.models import parts, tables
from twinline.facts.models import UnsupportedModel, read_spec, spec_from_config

Get = Callable[[str], Saved]
IDS = random.Random(2).choices(range(331), k=41)


class Held:
    """An engine on a family's checkpoint, held against the `transformers` model that it was saved from."""

    def __init__(self, saved: Saved, folder: Path | None = None, reference: Any = None):
        self.folder = folder or saved.folder
        self.want = dataclasses.replace(saved, reference=reference or saved.reference).logits(IDS)
        self.line = self.open()

    def open(self) -> Driven:
        line = Driven(self.folder)
        line.engine.runner.graphs.why_not = "a test changes its ops"  # a step that is replayed would not see it
        return line

    @property
    def layers(self) -> Any:
        return self.line.model.layers

    def error(self, line: Driven | None = None) -> float:
        """The worst of all ways through the sequence, of the largest |logit|; NaN counts as infinite."""
        errors = [(((line or self.line).logits(IDS, way) - self.want).abs().max() / self.want.abs().max()).item()
                  for way in WAYS]  # fmt: skip
        return max(math.inf if math.isnan(e) else e for e in errors)

    def agrees(self) -> Verdict:
        return agrees(self.error())

    def sprung(self, line: Driven | None = None) -> Verdict:
        return sprung(self.error(line))


Hold = Callable[..., Held]


@pytest.fixture
def hold(saved: Get, order: tuple[str, ...]) -> Hold:
    return lambda family, *more, **named: Held(saved(family), *more, **named)


@contextmanager
def put(at: Any, **changes: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as m:
        for name, value in changes.items():
            m.setattr(at, name, value)
        yield


@contextmanager
def renamed(table: tables.Table, **sources: tuple[str, ...]) -> Iterator[None]:
    """A layer's parameters, `_` for a dot and `__` for an underscore, from other tensors than they should be."""
    with pytest.MonkeyPatch.context() as m:
        for name, templates in sources.items():
            key = "layers.{i}." + name.replace("__", "-").replace("_", ".").replace("-", "_")
            assert key in table
            m.setitem(table, key, templates)
        yield


# Qwen3.


def test_trap_qwen3_norms_over_each_head_before_the_rotation(hold: Hold) -> None:
    held = hold("qwen3")
    assert held.agrees()
    for layer in held.layers:
        a = layer.attention
        for name in ("q_norm", "k_norm"):
            with put(getattr(a, name), forward=lambda x: x):
                assert held.sprung(), f"no {name}"
        norm, heads = a.q_norm, a.a.heads

        def together(x: Tensor, norm: Any = norm, heads: int = heads) -> Tensor:
            rows = x.view(-1, heads * 14)
            rows = rows * (rows.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
            return rows.view(x.shape) * norm.weight

        with put(norm, forward=together):
            assert held.sprung(), "one norm over all heads"
        turn = held.line.built.ops.rope

        def project(x: Tensor, rope: Any, a: Any = a, turn: Any = turn) -> tuple[Tensor, ...]:
            q, k, v = (p(x).view(len(x), -1, 14) for p in (a.q, a.k, a.v))
            q, k = (turn(rows, *rope, False) for rows in (q, k))
            return a.q_norm(q.reshape(-1, 14)).view(q.shape), a.k_norm(k.reshape(-1, 14)).view(k.shape), v

        with put(a, project=project):
            assert held.sprung(), "rotated before it was normed"


def test_trap_qwen3_head_size_is_its_own_field(saved: Get, tmp_path: Path) -> None:
    """14 values a head, where hidden size over heads is 10; left out it means 128, never the quotient."""
    model = saved("qwen3")
    assert read_spec(model.folder).attention.head_size == 14  # type: ignore[union-attr]

    def without(config: Config) -> Config:
        return {name: value for name, value in config.items() if name != "head_dim"}

    with pytest.raises(UnsupportedModel, match=r"k_norm.weight: shape \[14\] where the configuration asks for \[128\]"):
        Driven(rewrite(model.folder, tmp_path / "without", without))


# Experts without groups: Qwen3, Mixtral, ERNIE.


def test_trap_13_weights_are_normalised_where_the_model_says_so(hold: Hold, saved: Get, tmp_path: Path) -> None:
    """Qwen3 by `norm_topk_prob`, False if it is left out; Mixtral and ERNIE always."""
    for family in ("qwen3-moe", "mixtral", "ernie-moe"):
        held = hold(family)
        assert held.agrees()
        for wrong in ({"normalise": False}, {"scale": 2.0}):
            with put(held.line.built.ops, route=variant(**wrong)):
                assert held.sprung(), (family, wrong)
    model = saved("qwen3-moe")
    plain = copy.deepcopy(model.reference)
    for layer in plain.model.layers[1:]:
        layer.mlp.gate.norm_topk_prob = False

    def without(config: Config) -> Config:
        return {name: value for name, value in config.items() if name != "norm_topk_prob"}

    held = hold("qwen3-moe", rewrite(model.folder, tmp_path / "without", without), plain)
    assert held.agrees()
    with put(held.line.built.ops, route=variant(normalise=True)):
        assert held.sprung()


def test_trap_10_ernies_bias_chooses_and_never_weighs(hold: Hold) -> None:
    held = hold("ernie-moe")
    assert held.agrees()
    with put(held.line.built.ops, route=variant(biased_weight=True)):
        assert held.sprung()
    route = held.line.built.ops.route
    for layer in held.layers[1:]:
        gate = layer.mlp.gate
        with put(gate, forward=lambda x, gate=gate: route(x, gate.weight, torch.zeros_like(gate.bias), gate.e)):
            assert held.sprung(), "no bias in the choice"
        with put(layer.mlp.shared, forward=lambda x: torch.zeros_like(x)):
            assert held.sprung(), "no shared experts"


def test_trap_09_and_22_gate_and_bias_keep_float32(saved: Get) -> None:
    for family in ("qwen3-moe", "mixtral", "ernie-moe"):
        gate = Driven(saved(family).folder, dtype="bfloat16").model.layers[2].mlp.gate
        of = saved(family).reference.model.layers[2].mlp.gate
        assert gate.weight.dtype == torch.float32 and torch.equal(gate.weight.cpu(), of.weight)
        assert not torch.equal(gate.weight, gate.weight.bfloat16().float()), "a cast would be seen"
        if family == "ernie-moe":
            assert gate.bias.dtype == torch.float32
            assert torch.equal(gate.bias.cpu(), of.moe_statics.e_score_correction_bias[0])


def test_trap_mixtral_w3_is_what_the_gate_multiplies(hold: Hold) -> None:
    held = hold("mixtral")
    assert held.agrees()
    w1, w3 = (f"model.layers.{{i}}.block_sparse_moe.experts.{{e}}.{w}.weight" for w in ("w1", "w3"))
    with renamed(tables.MIXTRAL, mlp_experts_gate__up=(w3, w1)):
        assert held.sprung(held.open())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3-moe", {"mlp_only_layers": []}),
        ("qwen3-moe", {"mlp_only_layers": [], "decoder_sparse_step": 2}),
        ("qwen3-moe", {"mlp_only_layers": [3], "decoder_sparse_step": 2}),
        ("qwen3-moe", {"mlp_only_layers": [], "decoder_sparse_step": 3}),
        ("mixtral", {}),
        ("ernie-moe", {"moe_layer_start_index": 2}),
        ("ernie-moe", {"moe_layer_end_index": 3}),
        ("ernie-moe", {"moe_layer_interval": 2}),
        ("ernie-moe", {"moe_layer_start_index": 0, "moe_layer_interval": 3, "moe_layer_end_index": 4}),
    ],
)
def test_trap_16_which_layers_have_experts(family: str, changes: Config) -> None:
    """Counted as `transformers` counts: intervals from 1, the first and the last layer themselves within."""
    transformers = pytest.importorskip("transformers")
    prefix, sizes = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**sizes | changes | {"num_hidden_layers": 6})
    with torch.device("meta"):
        model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    sparse = {i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}
    spec = spec_from_config(config.to_dict() | {"architectures": [f"{prefix}ForCausalLM"]})
    assert spec.expert_layers == sparse and sparse


# GLM.


@pytest.mark.parametrize("family", ["glm4", "glm", "chatglm"])
def test_trap_glm_turns_neighbours_of_half_a_head(family: str, hold: Hold) -> None:
    held = hold(family)
    assert held.agrees()
    ops, model = held.line.built.ops, held.line.model
    turn, spec = ops.rope, held.line.built.spec
    assert (spec.rope.size, spec.rope.still) == (10, 10)
    with put(ops, rope=lambda x, cos, sin, _: turn(x, cos, sin, False)):
        assert held.sprung(), "halves, not neighbours"
    with put(ops, rope=lambda x, cos, sin, pairs: turn(x, cos.roll(5, 1), sin.roll(5, 1), pairs)):
        assert held.sprung(), "the second half"
    whole = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, size=20, still=0))
    with put(model, rope=parts.RopeTable(ops, whole, 512, held.line.device)):
        assert held.sprung(), "the whole head"
    narrow = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, size=20, still=0))
    table = parts.RopeTable(ops, narrow, 512, held.line.device)
    table.cos[:, 5:], table.sin[:, 5:] = 1, 0
    with put(model, rope=table):
        assert held.sprung(), "half of a head, with the angles of a whole one"


def test_trap_glm_half_is_what_no_factor_means(hold: Hold, saved: Get, tmp_path: Path) -> None:
    """mlx-lm#1698: published configurations leave `partial_rotary_factor` out."""
    for family in ("glm4", "glm"):

        def without(config: Config) -> Config:
            assert config["rope_parameters"].pop("partial_rotary_factor") == 0.5
            return config

        held = hold(
            family, rewrite(saved(family).folder, tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}", without)
        )
        assert held.agrees()


def test_trap_glm_values_that_keep_their_place_are_not_stretched(hold: Hold) -> None:
    """YaRN's factor on cosines and sines is for what is rotated."""
    held = hold("glm4-yarn-bias")
    assert held.agrees()
    rope = held.line.model.rope
    assert rope.cos.shape[1] == 10 and held.line.built.spec.rope.size == 8
    factor = rope.cos[0, 0].item()
    assert factor == pytest.approx(0.1 * math.log(4) + 1) and (rope.cos[:, 4:] == 1).all()
    with put(rope, cos=torch.cat((rope.cos[:, :4], rope.cos[:, 4:] * factor), 1)):
        assert held.sprung()


@pytest.mark.parametrize("family", ["glm4", "chatglm"])
def test_trap_glm_gate_is_the_first_half_of_gate_up(family: str, hold: Hold) -> None:
    held = hold(family)
    gated = held.line.built.ops.silu_mul
    with put(held.line.built.ops, silu_mul=lambda both: gated(both.roll(both.shape[-1] // 2, -1))):
        assert held.sprung()


def test_trap_glm4_0414_norms_what_is_added(hold: Hold) -> None:
    """vllm#16912: four norms a layer, two of them on what attention and MLP give, before it is added."""
    held = hold("glm4")
    assert held.agrees()
    for layer in held.layers:
        for name in ("after_attention", "after_mlp"):
            with put(getattr(layer, name), forward=lambda x: x):
                assert held.sprung(), f"no {name}"
    at = "model.layers.{i}.post_"
    with renamed(tables.GLM, after__attention_weight=(at + "attention_layernorm.weight",),
                 mlp__norm_weight=(at + "self_attn_layernorm.weight",)):  # fmt: skip
        assert held.sprung(held.open()), "post_attention_layernorm is the MLP's, despite its name"


def test_trap_chatglm_rope_ratio_stretches_the_base(hold: Hold, saved: Get, tmp_path: Path) -> None:
    """glm-4-9b-chat has 500: a base of 5,000,000, not positions divided by 500."""
    model = saved("chatglm")
    config = copy.deepcopy(model.reference.config)
    config.rope_parameters["rope_theta"] = 500 * 10000.0
    stretched = type(model.reference)(config).eval()
    stretched.load_state_dict(model.reference.state_dict())
    folder = rewrite(model.folder, tmp_path / "stretched", lambda c: c | {"rope_ratio": 500})
    held = hold("chatglm", folder, stretched)
    assert held.agrees()
    assert Held(model, folder).sprung(), "another base would be seen"


def test_trap_chatglm_rows_are_queries_then_keys_then_values(hold: Hold) -> None:
    held = hold("chatglm")
    a = held.layers[1].attention
    right, width = a.qkv.forward, 20
    order = [*range(6), 8, 9, 6, 7]  # values before keys
    with put(a.qkv, forward=lambda x: right(x).view(len(x), 10, width)[:, order].flatten(1)):
        assert held.sprung()
    order = [0, 1, 2, 6, 8, 3, 4, 5, 7, 9]  # each group's query, key and value together
    with put(a.qkv, forward=lambda x: right(x).view(len(x), 10, width)[:, order].flatten(1)):
        assert held.sprung()


# ERNIE.


def test_trap_ernie_turns_neighbours_of_the_whole_head(hold: Hold) -> None:
    for family in ("ernie", "ernie-moe"):
        held = hold(family)
        assert held.agrees() and held.line.built.spec.rope.still == 0
        turn = held.line.built.ops.rope
        with put(held.line.built.ops, rope=lambda x, cos, sin, _, turn=turn: turn(x, cos, sin, False)):
            assert held.sprung()


def test_trap_ernie_drafting_blocks_are_not_layers(hold: Hold, saved: Get, tmp_path: Path) -> None:
    """A checkpoint of 21B holds twelve tensors of a block that drafts; another name of that kind is an error."""
    from safetensors.torch import load_file, save_file

    model = saved("ernie-moe")
    block = ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight"]
    for extra, good in (block, True), (["model.mtp.x"], False):
        folder = rewrite(model.folder, tmp_path / str(good), lambda c: c | {"num_nextn_predict_layers": 1})
        tensors = load_file(folder / "model.safetensors") | {name: torch.zeros(2) for name in extra}
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors")
        if good:
            held = hold("ernie-moe", folder)
            assert held.agrees() and held.line.built.spec.predictor_layers == 0
        else:
            with pytest.raises(UnsupportedModel, match=r"model\.mtp\.x"):
                Driven(folder)


def test_trap_17_only_deepseek_has_layers_past_the_last(saved: Get, tmp_path: Path) -> None:
    """In other families they mean that the configuration is not the checkpoint's."""
    for family in ("qwen3", "chatglm"):
        fewer = {"num_layers" if family == "chatglm" else "num_hidden_layers": 2}
        with pytest.raises(UnsupportedModel, match=r"has no use for, first .*layers\.2\."):
            Driven(rewrite(saved(family).folder, tmp_path / family, lambda c, fewer=fewer: c | fewer))


# Ends.


def test_trap_31_glm_ends_by_any_of_three_tokens(saved: Get) -> None:
    assert worker.end_tokens(saved("glm4").folder) == {151329, 151336, 151338}
