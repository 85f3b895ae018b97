"""Checkpoints with a prediction layer, and a judge of what the layer's cache holds.

Owns three kinds of models, by how well the layer guesses, and the comparison of each request's keys with those of one
pass over the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tests.engine.checkpoints import R1, Config, Weights, weights, write
from tests.engine.driving import Driven
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine.ops.reference import gather
from twinline.engine.prediction import Prediction
from twinline.engine.request import Request, SamplingParams
from twinline.engine.scheduler import Work

CONFIG: Config = R1 | {"num_nextn_predict_layers": 1, "max_position_embeddings": 16384}
VOCAB = CONFIG["vocab_size"]
HALF = 0.05  # of what layers add: about half of the guesses hold


def tensors(share: float, config: Config = CONFIG) -> Weights:
    """Weights of which the layers add `share` of what they would. With 0 a token depends on the one before it alone,
    and the prediction layer, which hands the embedding on, always guesses right; with 1 nearly never."""
    found = weights(config)
    for name in found:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            found[name] = found[name] * share
    p, hidden = f"model.layers.{config['num_hidden_layers']}.", CONFIG["hidden_size"]
    found[p + "eh_proj.weight"] = torch.cat((torch.eye(hidden), found[p + "eh_proj.weight"][:, hidden:] * share), 1)
    found[p + "enorm.weight"] = torch.ones(hidden)
    found[p + "shared_head.norm.weight"] = found["model.norm.weight"].clone()
    return found


def folder(path: Path, share: float, config: Config = CONFIG) -> Path:
    return write(path, config, tensors(share, config))


def prediction(line: Driven) -> Prediction:
    assert line.engine.speculation is not None and line.engine.speculation.prediction is not None
    return line.engine.speculation.prediction


def patient(line: Driven) -> Driven:
    """The same engine, which never gives its guesses up: what a step takes here is no measure."""
    if line.engine.speculation is not None:
        line.engine.speculation.payoff = None
    return line


def keys(line: Driven, pages: Sequence[int], count: int) -> Tensor:
    """The layer's cached rows in the first `count` places of these pages."""
    return gather(line.engine.runner.predictor_cache[0][0], torch.tensor(pages, device=line.device), count)


class Judge:
    """An engine that serves nobody, to compute what the layer's cache should hold."""

    def __init__(self, where: Path) -> None:
        self.line = Driven(where, speculation="mtp")

    def rows(self, ids: list[int]) -> Tensor:
        """The layer's cached rows for every token of a text but the last, in one pass."""
        runner, pool, count = self.line.engine.runner, self.line.engine.pool, len(ids) - 1
        pages = pool.allocate(pool.pages_for(count))
        assert pages is not None
        work = Work(Request("judge", ids, SamplingParams(), pages=pages), 0, count)
        batch = batches.build((work,), runner.page_size, runner.device.torch_device, runner.spare_page)
        next_ids = torch.tensor(ids[1:], device=self.line.device)
        runner.predicted(batch, next_ids, runner.hidden(batch), begins=True)
        found = keys(self.line, pages, count).clone()
        pool.release(pages)
        return found

    def looks(self, line: Driven) -> int:
        """Compares what the layer has of every request with one pass over the request's text; how many rows it saw."""
        seen = 0
        for trail in prediction(line)._trails.values():
            if trail.lost or not trail.upto or not trail.request.pages:
                continue
            got = keys(line, trail.pages, trail.upto)
            want = self.rows(trail.request.tokens(0, trail.upto + 1))
            torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4, msg=lambda m, r=trail.request: f"{r.id}: {m}")
            seen += trail.upto
        return seen
