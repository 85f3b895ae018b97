"""The engine gives the numbers of the models' own code: same logits, same greedy tokens, however the work is cut up.

The reference is `transformers` in float32, and for the training form `twinline.train.model`. Every family, both the
device's provider order and the reference alone. Greedy tokens are judged teacher-forced: one pass of the reference over
prompt and output must choose each output token, which by induction is its own greedy output.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import checkpoints
from tests.engine.checkpoints import FAMILIES, Config, Saved
from tests.engine.conftest import ORDERS
from tests.engine.driving import Driven, only, same
from torch import Tensor

from twinline.engine.request import Request
from twinline.facts.models import read_spec
from twinline.train.model import DeepseekV3, Shape

TOLERANCE = 1e-4  # of the largest |logit|, float32
TIE = 2e-5  # of the largest |logit|: two tokens nearer than rounding are both greedy
NEW_TOKENS = 64

Get = Callable[[str], Saved]

every_family = pytest.mark.parametrize("family", FAMILIES)
# How work is cut up is decided above the ops: two orders for one family of each attention and routing is enough.
scenario = pytest.mark.parametrize(
    ("family", "order"),
    [(family, "natural") for family in FAMILIES if not family.endswith("-bias")]
    + [(family, "pure") for family in ("qwen2", "v2-lite", "v3", "qwen3-moe", "glm4")],
    indirect=["order"],
)


def ids(saved: Saved, count: int, seed: int = 0) -> list[int]:
    return random.Random(f"{saved.name} {seed}").choices(range(saved.vocab), k=count)


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def assert_greedy(saved: Saved, request: Request, count: int = NEW_TOKENS) -> None:
    assert len(request.output) == count
    logits = saved.logits(request.prompt + request.output)[len(request.prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(request.output)[:, None])[:, 0]
    behind = (logits.max(-1).values - chosen) / logits.abs().max()
    assert behind.max() <= TIE, f"token {int(behind.argmax())} of {request.id} is not the reference's"


def assert_logprobs(saved: Saved, request: Request, logprobs: Sequence[float]) -> None:
    """The last `len(logprobs)` output tokens' log-probabilities, sampled ones too."""
    logits = saved.logits(request.prompt + request.output)[-1 - len(logprobs) : -1]
    tokens = torch.tensor(request.output[-len(logprobs) :])
    want = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert (torch.tensor(logprobs) - want).abs().max() <= TOLERANCE * logits.abs().max()


@every_family
@pytest.mark.parametrize("chunks", [(), (17, 64, 1, 1, 14), (33,) + (1,) * 64], ids=["whole", "chunks", "decodes"])
def test_logits(family: str, chunks: tuple[int, ...], saved: Get, order: tuple[str, ...]) -> None:
    model = saved(family)
    prompt = ids(model, 97)
    assert error(Driven(model.folder).logits(prompt, chunks), model.logits(prompt)) <= TOLERANCE


@scenario
def test_greedy_alone_with_prompt_logprobs(family: str, saved: Get, order: tuple[str, ...]) -> None:
    model, prompt = saved(family), ids(saved(family), 45)
    line = Driven(model.folder)
    request = line.submit("alone", prompt, prompt_logprobs=3, max_tokens=NEW_TOKENS)
    line.run()
    assert_greedy(model, request)
    assert_logprobs(model, request, line.logprobs(request))
    first = line.outputs["alone"][0].prompt_logprobs
    assert first is not None and len(first) == len(prompt) and first[0] is None
    logits = model.logits(prompt)
    want = logits.log_softmax(-1)
    for position, (found, token) in enumerate(zip(first[1:], prompt[1:], strict=True)):
        assert found is not None and found.token == token and len(found.top) == 3
        assert abs(found.logprob - want[position, token].item()) <= TOLERANCE * logits.abs().max()
        for alternative, logprob in found.top:
            assert abs(logprob - want[position, alternative].item()) <= TOLERANCE * logits.abs().max()


@scenario
def test_greedy_in_a_mixed_batch(family: str, saved: Get, order: tuple[str, ...]) -> None:
    """16 requests of different lengths that arrive in different steps, 5 of them sampled."""
    model = saved(family)
    line = Driven(model.folder, max_tokens_per_step=90)
    requests = []
    for i in range(16):
        sampling: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": i} if i % 3 == 2 else {}
        count = NEW_TOKENS if i % 4 == 0 else 8 + i
        requests.append(line.submit(f"r{i}", ids(model, 3 + (i * 29) % 83, seed=i), max_tokens=count, **sampling))
        line.step(2)
    assert line.engine.scheduler.running > 8, "they did not run together"
    line.run()
    for request in requests:
        if request.params.greedy:
            assert_greedy(model, request, request.params.max_tokens)
        assert_logprobs(model, request, line.logprobs(request))


@scenario
def test_greedy_with_chunked_prefill(family: str, saved: Get, order: tuple[str, ...]) -> None:
    model = saved(family)
    line = Driven(model.folder, max_tokens_per_step=7, max_running=3)
    requests = [line.submit(f"r{i}", ids(model, 40 + 9 * i, seed=i), max_tokens=NEW_TOKENS) for i in range(2)]
    line.run()
    for request in requests:
        assert_greedy(model, request)


@scenario
def test_greedy_after_a_prefix_hit(family: str, saved: Get, order: tuple[str, ...]) -> None:
    model = saved(family)
    line = Driven(model.folder)
    shared = ids(model, 70)
    line.submit("first", shared + ids(model, 9, seed=1), max_tokens=5)
    line.run()
    request = line.submit("second", shared + ids(model, 21, seed=2), max_tokens=NEW_TOKENS)
    line.run()
    assert request.cached_tokens == 64, "whole pages of 16 of the shared 70 tokens"
    assert_greedy(model, request)


@scenario
def test_greedy_after_preemption(family: str, saved: Get, order: tuple[str, ...]) -> None:
    """Once by hand in the middle of decoding, without a prefix cache to come back to; then by a cache too small."""
    model = saved(family)
    line = Driven(model.folder, prefix_cache=False)
    request = line.submit("by hand", ids(model, 37), max_tokens=NEW_TOKENS)
    line.step(20)
    line.engine.scheduler.preempt(request)
    line.run()
    assert request.preemptions == 1
    assert_greedy(model, request)

    line = Driven(model.folder, kv_tokens=320, max_model_len=256)
    requests = [line.submit(f"r{i}", ids(model, 80 + i, seed=i), max_tokens=24) for i in range(4)]
    line.run()
    assert line.engine.scheduler.preemptions > 0
    for each in requests:
        assert_greedy(model, each, 24)


@scenario
def test_greedy_continued_on_another_engine(family: str, saved: Get, order: tuple[str, ...]) -> None:
    model, prompt = saved(family), ids(saved(family), 50)
    first = Driven(model.folder)
    begun = first.submit("begun", prompt, max_tokens=23)
    first.run()
    second = Driven(model.folder, max_tokens_per_step=40)
    request = second.submit("continued", prompt, output=begun.output, max_tokens=NEW_TOKENS)
    second.run()
    assert request.output[:23] == begun.output
    assert len(second.logprobs(request)) == NEW_TOKENS - 23, "what was carried is not sent again"
    assert_greedy(model, request)


def old_spelling(config: Config) -> Config:
    """`rope_theta` and `rope_scaling`, as every checkpoint published before transformers 5 has them."""
    rope = dict(config.pop("rope_parameters"))
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    config |= {name: rope.pop(name) for name in ("partial_rotary_factor",) if name in rope}
    return config | {"rope_theta": theta, "rope_scaling": {"type": kind, **rope} if kind != "default" else None}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "chatglm"])
def test_both_spellings_of_the_rope_fields(family: str, saved: Get, tmp_path: Path) -> None:
    model, prompt = saved(family), ids(saved(family), 60)
    old = checkpoints.rewrite(model.folder, tmp_path / "old", old_spelling)
    assert read_spec(old) == read_spec(model.folder)
    assert error(Driven(old).logits(prompt), model.logits(prompt)) <= TOLERANCE


LAST = "mlp.experts.11.up_proj"
EXPERT = dict.fromkeys(("v2-lite", "v2", "v3", "v3-bias", "qwen3-moe", "ernie-moe"), LAST)
EXPERT["mixtral"] = "block_sparse_moe.experts.4.w3"


@every_family
def test_a_sharded_checkpoint(family: str, saved: Get, tmp_path: Path) -> None:
    """With one tensor per expert, as published, in many small files: the same model."""
    model, prompt = saved(family), ids(saved(family), 60)
    sharded = model.save(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 4
    names = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    stored = any(".experts." in name for name in names)
    assert stored is (family in EXPERT)
    assert family not in EXPERT or f"model.layers.1.{EXPERT[family]}.weight" in names
    assert same(Driven(sharded).logits(prompt), Driven(model.folder).logits(prompt))


# bfloat16: both orders are measured against float32 arithmetic on the same rounded weights, row by row. Where rounding
# flips an expert at a near tie a row may be far off in either order, so the median row is judged.
BF16_MEDIAN_ROW = 0.04  # of the row's largest |logit|
BF16_AGAINST_REFERENCE = 1.25  # times the median error of the reference provider


def rounded(saved: Saved) -> Saved:
    """The reference with the weights that a bfloat16 engine holds: rounded, but for the gates."""
    model = copy.deepcopy(saved.reference)
    for name, p in model.named_parameters():
        if not name.endswith(("mlp.gate.weight", "correction_bias")):
            p.data = p.data.bfloat16().float()
    return dataclasses.replace(saved, reference=model)


@every_family
def test_bfloat16(family: str, saved: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = saved(family), ids(saved(family), 200)
    exact = rounded(model).logits(prompt)
    medians: dict[tuple[str, int], float] = {}
    for name, providers in ORDERS.items():
        if name == "pure":
            only(monkeypatch, *providers)
        line = Driven(model.folder, dtype="bfloat16")
        for chunks in ((), (150,) + (1,) * 50):
            got = line.logits(prompt, chunks).float()
            rows = (got - exact).abs().amax(-1) / exact.abs().amax(-1)
            medians[name, len(chunks)] = rows.median().item()
    assert max(medians.values()) <= BF16_MEDIAN_ROW, medians
    for steps in (0, 51):
        assert medians["natural", steps] <= BF16_AGAINST_REFERENCE * medians["pure", steps], medians


def test_training_form_and_serving_form(tmp_path: Path, order: tuple[str, ...]) -> None:
    """A `twinline.train.model` exported as `twinline.train.tiny_r1.export` does, its prediction layer included."""
    shape = Shape(vocab_size=97, hidden_size=48, intermediate_size=80, moe_intermediate_size=24, num_hidden_layers=3,
                  q_lora_rank=20, kv_lora_rank=28, qk_nope_head_dim=14, qk_rope_head_dim=8, v_head_dim=10,
                  n_routed_experts=8, num_experts_per_tok=3, max_position_embeddings=256)  # fmt: skip
    torch.manual_seed(5)
    model = DeepseekV3(shape).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.5, 0.5)
    for name, p in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], **shape.to_dict(), "num_key_value_heads": 4,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "rope_interleave": True,
        "rope_scaling": None, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
        "dtype": "float32",
    }  # fmt: skip
    tensors = {n: t.detach().contiguous() for n, t in model.checkpoint().items()}
    assert any(name.startswith("model.layers.3.eh_proj") for name in tensors)
    folder = checkpoints.write(tmp_path / "exported", config, tensors)
    prompt = random.Random(0).choices(range(97), k=120)
    with torch.no_grad():
        want = model(torch.tensor([prompt]))[0]
    line = Driven(folder)
    for chunks in ((), (50, 69, 1), (80,) + (1,) * 40):
        assert error(line.logits(prompt, chunks), want) <= TOLERANCE
    # The embedding's matrix is not tied to the head's.
    assert not torch.equal(tensors["model.embed_tokens.weight"], tensors["lm_head.weight"])
