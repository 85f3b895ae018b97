"""Traps 18 to 20 of the reference list, of DeepSeek's prediction layer, as in `test_traps.py`: the engine agrees with
the oracle, and with the trap sprung it does not. They are silent in use: text stays the same, only fewer guesses hold.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import oracle, predicting
from tests.engine.checkpoints import R1, weights, write
from tests.engine.driving import Driven
from tests.engine.judged import IDS, SPRUNG, TOLERANCE
from torch import Tensor

from twinline.engine import loop
from twinline.engine.models import transformer as transformer_module

DEPTH = 3
CONFIG = R1 | {"num_nextn_predict_layers": 1}


class Guessed:
    """An engine that has just read a prompt: the logits of each of its guesses beside the oracle's."""

    def __init__(self, folder: Path, config: dict[str, Any] = CONFIG) -> None:
        self.config, self.weights = config, weights(config)
        self.line = Driven(write(folder, config, self.weights), speculation="mtp", draft_depth=DEPTH,
                           prefix_cache=False)  # fmt: skip
        self.model, self.runner = self.line.model, self.line.engine.runner
        for recorded in (self.runner.predictor_graphs, self.runner.chains):
            recorded.why_not = "a test changes its parts"  # type: ignore[union-attr]

    def error(self) -> float:
        """The largest difference of any guess's logits, relative to the largest logit."""
        asked, prediction = [], predicting.prediction(self.line)
        guess = prediction.sampler.guess
        prediction.sampler.guess = lambda logits, requests: (asked.append(logits[0].double()), guess(logits, requests))[
            1
        ]  # type: ignore[method-assign]
        request = self.line.submit("r", IDS, max_tokens=40)
        self.line.step()
        prediction.sampler.guess = guess  # type: ignore[method-assign]
        found = prediction.guess(request, DEPTH)
        assert len(asked) == len(found) == DEPTH
        hidden = oracle.run(self.config, self.weights, IDS).hidden
        ids, worst = [*IDS[1:], request.output[0]], 0.0
        for logits, token in zip(asked, found, strict=True):
            out, want = oracle.predict(self.config, self.weights, hidden, ids)
            worst = max(worst, ((logits.cpu() - want[-1]).abs().max() / want.abs().max()).item())
            hidden, ids = torch.cat((hidden, out[-1:])), [*ids, token]
        self.line.engine.abort("r")
        self.line.step()
        return worst


@pytest.fixture
def guessed(tmp_path: Path, order: tuple[str, ...]) -> Guessed:
    return Guessed(tmp_path / "model")


def test_trap_18_embedding_first_then_hidden_and_nothing_at_position_0(
    guessed: Guessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eh_proj` reads [enorm(embedding of the next token) | hnorm(hidden)]; position 0 has no embedding."""
    assert guessed.error() <= TOLERANCE
    p = guessed.model.predictor
    with monkeypatch.context() as m:
        m.setattr(p, "of_embedding", p.of_hidden)
        m.setattr(p, "of_hidden", p.of_embedding)
        assert guessed.error() > SPRUNG, "hidden first"
    with monkeypatch.context() as m:
        m.setattr(transformer_module, "without_first", lambda embedded, positions: embedded)
        assert guessed.error() > SPRUNG, "an embedding at position 0"
    e, h = p.embedding_norm, p.hidden_norm
    p.embedding_norm, p.hidden_norm = h, e
    assert guessed.error() > SPRUNG, "norms exchanged"
    p.embedding_norm, p.hidden_norm = e, h
    assert guessed.error() <= TOLERANCE


def test_trap_18_nothing_at_position_0_when_it_catches_up(tmp_path: Path) -> None:
    """A prompt that was read while the layer was idle: its keys are those of one pass over the text, from the first."""
    folder = predicting.folder(tmp_path / "m", 1.0)
    line = predicting.patient(Driven(folder, speculation="mtp"))
    late = line.submit("late", IDS, max_tokens=60)
    busy = [line.submit(f"busy{i}", IDS[i:9], max_tokens=5) for i in range(5)]
    line.step(2)
    trail = predicting.prediction(line)._trails["late"]
    assert trail.waiting and not trail.upto, "too many requests to guess for"
    while any(request.pages for request in busy):
        line.step()
    line.step(2)
    assert not trail.waiting and trail.upto == late.known - 1
    assert predicting.Judge(folder).looks(line) >= trail.upto


@pytest.mark.parametrize("form", ["int8", "int4:32"])
def test_trap_18_the_joint_matrix_is_never_rounded(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the layers' weights are integers `eh_proj` is as in the checkpoint."""
    tensors = weights(CONFIG)
    folder, matrix = write(tmp_path / "m", CONFIG, tensors), tensors["model.layers.3.eh_proj.weight"].double()

    def error() -> float:
        line = Driven(folder, speculation="mtp", weights=form)
        p = line.model.predictor
        x = torch.randn(2, 5, R1["hidden_size"], generator=torch.Generator().manual_seed(2))
        taken: list[Tensor] = []
        monkeypatch.setattr(p.layer, "forward", lambda x, residual, *_: (taken.append(x + residual), (x, residual))[1])
        p(*x.to(line.device), None, None, None)
        norms = (
            oracle.rms(x[i].double(), n.weight.cpu().double(), 1e-6)
            for i, n in enumerate((p.embedding_norm, p.hidden_norm))
        )
        want = torch.cat(tuple(norms), 1) @ matrix.T
        return ((taken[0].cpu() - want).abs().max() / want.abs().max()).item()

    assert error() <= TOLERANCE
    wrong = Driven(folder, weights=form).built.ops.facts.weights
    monkeypatch.setattr("twinline.engine.models.predictor.PLAIN", wrong)
    assert error() > SPRUNG


def test_trap_19_hidden_states_after_the_norm(guessed: Guessed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first guess goes on from the model's state after its last norm, each later one from the layer's own after
    `shared_head.norm`. The traps are the states before (a norm of a norm forgets all but the first one's weight)."""
    assert guessed.error() <= TOLERANCE
    right: Callable[..., Tensor] = guessed.runner.predicted
    for norm, rows in ((guessed.model.norm, len(IDS)), (guessed.model.predictor.norm, 1)):

        def before(batch: Any, ids: Tensor, previous: Tensor, norm=norm, rows=rows, **how: Any) -> Tensor:
            return right(batch, ids, previous / norm.weight if len(previous) == rows else previous, **how)

        with monkeypatch.context() as m:
            m.setattr(guessed.runner, "predicted", before)
            assert guessed.error() > SPRUNG, f"before the norm, {rows} rows"

    def models_own(batch: Any, ids: Tensor, previous: Tensor, **how: Any) -> Tensor:
        models_own.last = previous[-1:] if len(previous) > 1 else models_own.last  # type: ignore[attr-defined]
        return right(batch, ids, previous if len(previous) > 1 else models_own.last, **how)  # type: ignore[attr-defined]

    with monkeypatch.context() as m:
        m.setattr(guessed.runner, "predicted", models_own)
        assert guessed.error() > SPRUNG, "the model's state again for the second guess"


def test_trap_19_recorded_guesses_go_on_from_the_same_states(tmp_path: Path) -> None:
    """Where a whole guess is one recorded step, its tokens are the oracle's likeliest, one after the other."""
    tensors = weights(CONFIG)
    folder = write(tmp_path / "m", CONFIG, tensors)
    line = predicting.patient(Driven(folder, speculation="mtp", draft_depth=DEPTH, prefix_cache=False))
    chains = line.engine.runner.chains
    assert chains is not None
    if chains.why_not is not None:
        pytest.skip(chains.why_not)
    request, seen = line.submit("r", IDS, max_tokens=40), 0
    line.step()
    for _ in range(12):
        line.step()
        known = [*IDS, *request.output]
        hidden, ids = oracle.run(CONFIG, tensors, known[:-1]).hidden, known[1:]
        for token in predicting.prediction(line).guess(request, DEPTH):
            out, want = oracle.predict(CONFIG, tensors, hidden, ids)
            assert want[-1, token] >= want[-1].max() - SPRUNG * want.abs().max(), "not the likeliest token"
            hidden, ids, seen = torch.cat((hidden, out[-1:])), [*ids, token], seen + 1
    assert chains._recorded, "no guess was one recorded step"
    assert seen == 12 * DEPTH


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "sampled"])
def test_trap_20_a_guess_is_never_believed(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer guesses some tokens and not others, and the text is the plain one; the trap is a guess that is taken
    without looking, or because it is likely."""
    folder = predicting.folder(tmp_path / "m", predicting.HALF)

    def text(**options: Any) -> tuple[list[int], float]:
        line = predicting.patient(Driven(folder, **options))
        request = line.submit("r", IDS, max_tokens=150, **setting)
        line.run()
        counters = line.engine.counters
        return request.output, counters.accepted_tokens / max(1, counters.draft_tokens)

    plain, _ = text()
    guessed, share = text(speculation="mtp", draft_depth=2)
    assert guessed == plain and 0.15 < share < 0.85
    with monkeypatch.context() as m:
        m.setattr(loop, "agreed", lambda draft, drawn: len(draft) + 1)
        assert text(speculation="mtp")[0] != plain
