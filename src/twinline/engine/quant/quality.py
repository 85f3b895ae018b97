"""How far two variants of a model are apart: their logits on the same tokens, and their own answers.

Owns the running of both, one after the other, so that one is in memory at a time. Knows no text. Both run in float32 on
the values that their weights stand for: what is measured is the weights, not a device's arithmetic. Shape suffixes: N
positions, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine.build import Options, build
from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.scheduler import Work

ROWS = 64  # positions that are compared at once
CHUNK = 256  # positions that are computed at once
RUNNING = 32


@dataclass(frozen=True)
class Distance:
    """Over `positions` of the texts. `kl`: the mean of KL(source || target) in nats, `kl_99` its 99th percentile,
    `kl_most` the greatest. `top1`: the share of positions where both think the same token likeliest. The perplexities
    are of the texts themselves."""

    positions: int
    kl: float
    kl_99: float
    kl_most: float
    top1: float
    perplexity_source: float
    perplexity_target: float


@dataclass(frozen=True)
class Compared:
    """`answers`: of source and of target, for each prompt."""

    distance: Distance
    answers: tuple[list[list[int]], list[list[int]]]


class _Model:
    """A variant in memory, in float32, with a cache for what is asked of it."""

    def __init__(self, folder: Path, longest: int):
        self.errors: list[str] = []
        options = Options(device="cpu", dtype="float32", weights="plain", max_model_len=longest, max_running=RUNNING,
                          max_tokens_per_step=CHUNK, kv_tokens=RUNNING * longest, max_waiting=2**20)  # fmt: skip
        self.built = build(folder, options, self._deliver)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        self.errors += [o.error for o in outputs if o.error]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """`[N, V]` of every position of one sequence."""
        engine = self.built.engine
        pages = engine.pool.allocate(engine.pool.pages_for(len(ids)))
        assert pages is not None
        request, rows = Request("logits", list(ids), SamplingParams(), pages=pages), []
        runner = engine.runner
        for start in range(0, len(ids), CHUNK):
            work = Work(request, start, min(CHUNK, len(ids) - start))
            batch = batches.build((work,), runner.page_size, runner.device.torch_device, runner.spare_page)
            rows.append(runner.logits(runner.hidden(batch), range(work.count)).float())
        engine.pool.release(pages)
        return torch.cat(rows)

    def answers(self, prompts: Sequence[Sequence[int]], stops: frozenset[int], most: int) -> list[list[int]]:
        """Greedy answers of at most `most` tokens. RuntimeError with the engine's words where one ends in error."""
        params = SamplingParams(temperature=0, max_tokens=most, stop_token_ids=stops)
        requests = [Request(str(i), list(ids), params) for i, ids in enumerate(prompts)]
        engine = self.built.engine
        for request in requests:
            engine.submit(request)
        while engine.scheduler.has_work:
            engine.step()
            if self.errors:
                raise RuntimeError(self.errors[0])
        return [list(r.output) for r in requests]


def compare(
    source: Path,
    target: Path,
    texts: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]] = (),
    stops: frozenset[int] = frozenset(),
    most: int = 256,
) -> Compared:
    """Runs both on `texts`, token ids of at least 2 each, and lets both answer `prompts`.

    Raises ValueError (UnsupportedModel among them) where one cannot be loaded, for want of memory too.
    """
    longest = max([*map(len, texts), *(len(p) + most for p in prompts)]) + 1
    positions = sum(map(len, texts))
    model = _Model(source, longest)
    with tempfile.TemporaryFile() as file:
        vocab = model.built.spec.vocab
        kept = np.memmap(file, dtype=np.float32, mode="w+", shape=(positions, vocab))
        for ids, at in zip(texts, _starts(texts), strict=True):
            kept[at : at + len(ids)] = model.logits(ids).numpy()
        before = model.answers(prompts, stops, most)
        del model  # before the other one is loaded
        model = _Model(target, longest)
        found = [
            _rows(torch.from_numpy(kept[at : at + len(ids)]), model.logits(ids), ids)
            for ids, at in zip(texts, _starts(texts), strict=True)
        ]
        del kept
    return Compared(_distance(found), (before, model.answers(prompts, stops, most)))


def _starts(texts: Sequence[Sequence[int]]) -> list[int]:
    return [0, *np.cumsum([len(ids) for ids in texts])[:-1].tolist()]


@dataclass(frozen=True)
class _Rows:
    kl_N: Tensor
    same_N: Tensor
    source_N: Tensor  # log-probability of the text's next token
    target_N: Tensor


def _rows(source_NV: Tensor, target_NV: Tensor, ids: Sequence[int]) -> _Rows:
    kl, following = [], torch.tensor([*ids[1:], 0])
    said: tuple[list[Tensor], list[Tensor]] = ([], [])
    for at in range(0, len(ids), ROWS):
        p, q = (logits[at : at + ROWS].double().log_softmax(-1) for logits in (source_NV, target_NV))
        kl.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
        for told, logprobs in zip(said, (p, q), strict=True):
            told.append(logprobs.gather(1, following[at : at + ROWS, None])[:, 0])
    same = source_NV.argmax(-1) == target_NV.argmax(-1)
    return _Rows(torch.cat(kl), same, torch.cat(said[0])[:-1], torch.cat(said[1])[:-1])


def _distance(found: list[_Rows]) -> Distance:
    kl = torch.cat([r.kl_N for r in found])
    source, target = torch.cat([r.source_N for r in found]), torch.cat([r.target_N for r in found])
    return Distance(
        positions=len(kl),
        kl=kl.mean().item(),
        kl_99=kl.sort().values[math.ceil(0.99 * len(kl)) - 1].item(),
        kl_most=kl.max().item(),
        top1=torch.cat([r.same_N for r in found]).double().mean().item(),
        perplexity_source=math.exp(-source.mean().item()),
        perplexity_target=math.exp(-target.mean().item()),
    )
