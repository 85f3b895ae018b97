"""The embedded model's making: its tokenizer takes any text, its training form learns, its export is a checkpoint."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from twinline.facts.models import read_spec
from twinline.train import tiny_r1
from twinline.train.model import DeepseekV3, MoE, Shape
from twinline.train.muon import Muon, orthogonalise
from twinline.train.tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, build

SMALL = Shape(hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, q_lora_rank=24,
              kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_routed_experts=8)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    build(directory)
    return tiny_r1.Encoder(directory / "tokenizer.json")


@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text):
    tokenizer = _shared_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


_cache: list[Tokenizer] = []


def _shared_tokenizer() -> Tokenizer:
    if not _cache:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as directory:
            build(Path(directory))
            _cache.append(Tokenizer.from_file(f"{directory}/tokenizer.json"))
    return _cache[0]


def test_digits_and_quoted_letters_stay_single(encoder):
    assert len(encoder.plain("90718")) == 5
    assert len(encoder.plain('"strawberry"')) == len("strawberry") + 2


def test_a_sample_is_a_rendered_conversation(encoder):
    rng = random.Random(0)
    for _ in range(50):
        ids, start = encoder.sample(rng)
        assert ids[0] == encoder.id[BOS] and ids[-1] == encoder.id[EOS]
        assert encoder.id[USER] in ids[:start] and encoder.id[ASSISTANT] in ids[:start]
        assert encoder.id[THINK] in ids[start - 3 : start]
        assert ids[start:].count(encoder.id[END_THINK]) == 1


def test_training_learns_and_balances(encoder):
    torch.manual_seed(0)
    model = DeepseekV3(SMALL)
    data = tiny_r1.batches(encoder, random.Random(0), 1024)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "predictor" not in n]
    optimizer = Muon(matrices, lr=0.02)
    losses = []
    for _ in range(12):
        loss = tiny_r1.one_step(model, *next(data), predictor=False)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(moe.load.sum() > 0 for layer in model.layers[1:] for moe in layer.modules() if isinstance(moe, MoE))


def test_the_prediction_layer_trains_without_the_trunk(encoder):
    model = DeepseekV3(SMALL)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("predictor"))
    tiny_r1.one_step(model, *next(tiny_r1.batches(encoder, random.Random(1), 512)), predictor=True).backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"predictor"}


def test_orthogonalised_matrices_have_singular_values_near_one():
    for shape in ((24, 40), (40, 24), (3, 16, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4 and values.max() < 1.4


def test_the_rate_warms_up_stays_and_decays():
    run = tiny_r1.Run(steps=1200, decay=200, mtp_steps=200, tokens=1, muon_lr=1, adam_lr=1)
    assert run.rate(0) == pytest.approx(0.01)
    assert run.rate(500) == 1
    assert run.rate(900) == pytest.approx(0.5)
    assert run.rate(999) < 0.01
    assert run.rate(1000) == pytest.approx(0.01)
    assert run.rate(1150) == pytest.approx(0.5)


def test_export_is_a_checkpoint_that_the_facts_room_reads(tmp_path):
    state = tmp_path / "state.pt"
    torch.save({"model": DeepseekV3(Shape()).state_dict()}, state)
    tiny_r1.export(state, tmp_path / "out")
    spec = read_spec(tmp_path / "out")
    assert spec.family == "deepseek" and spec.predictor_layers == 1
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert 5_000_000 < sum(t.numel() for t in tensors.values()) < 8_000_000
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert tensors["model.layers.1.mlp.experts.3.up_proj.weight"].shape == (128, 192)
    assert "model.layers.4.eh_proj.weight" in tensors
