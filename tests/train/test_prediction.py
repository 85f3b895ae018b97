"""The prediction layer is trained as the engine runs it, and nothing but the layer changes."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.engine.driving import Driven
from tests.engine.predicting import prediction
from tests.engine.tiny import VOCAB, write_checkpoint

from twinline.cli.folder import embedded
from twinline.train import prediction as training
from twinline.train.tiny_r1 import Encoder

DEPTH = 4


def test_unrolled_states_are_the_engines(tmp_path: Path) -> None:
    """The logits of four guesses on end, each from the state before it."""
    folder = write_checkpoint(tmp_path / "m")
    line = Driven(folder, speculation="mtp", draft_depth=DEPTH)
    asked: list[torch.Tensor] = []
    source, prompt = prediction(line), [(i * 37 + 5) % VOCAB for i in range(23)]
    for recorded in (line.engine.runner.chains, line.engine.runner.predictor_graphs):
        recorded.why_not = "a test looks at each guess"  # type: ignore[union-attr]
    guess = source.sampler.guess
    source.sampler.guess = lambda logits, requests: (asked.append(logits[0]), guess(logits, requests))[1]  # type: ignore[method-assign]
    request = line.submit("r", prompt, max_tokens=20)
    line.step()
    found = source.guess(request, DEPTH)
    assert len(asked) == len(found) == DEPTH
    model, ids = training.load(folder), torch.tensor([[*prompt, *request.output, *found]])
    with torch.no_grad():
        states = training.unrolled(model, model.hidden(ids[:, :-2]), ids[:, 1:-1], DEPTH)
        for place, (state, logits) in enumerate(zip(states, asked, strict=True)):
            want = model.lm_head(state[0, len(prompt) - 1 + place])
            torch.testing.assert_close(logits, want, atol=2e-4, rtol=2e-4)


def test_a_step_of_training_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = argparse.Namespace(model=embedded(), out=tmp_path / "out", steps=1, depth=2, tokens=1200, muon_lr=0.01,
                               adam_lr=1e-3, seed=0)  # fmt: skip
    model, encoder = training.load(given.model), Encoder(given.model / "tokenizer.json")
    before = training.held(model, encoder, 1, 2, seed=2)
    assert before[0] > 0.85 and 0.3 < before[1] < before[0]
    training.train(model, encoder, given)
    training.write(model, given)
    old, new = (load_file(folder / "model.safetensors") for folder in (given.model, given.out))
    assert {n: t.dtype for n, t in old.items()} == {n: t.dtype for n, t in new.items()}
    changed = {n for n in old if not torch.equal(old[n], new[n])}
    assert changed and all(n.startswith("model.layers.4.") for n in changed)
    assert not any("embed_tokens" in n or n.endswith("shared_head.head.weight") for n in changed)
    shutil.rmtree(given.out)
