"""How far the vectors of two variants of a model are apart: the cosines between those of the same texts.

Owns the running of both, one after the other, so that one is in memory at a time. Knows no text. Both run in float32 on
the values that their weights stand for, as in `quality.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinline.engine.build import Options, build
from twinline.engine.pooling import Pool
from twinline.engine.request import Output, Request, SamplingParams

CHUNK = 256  # tokens that are computed at once
RUNNING = 32


@dataclass(frozen=True)
class VectorDistance:
    """Over `count` texts of `positions` tokens in all: the mean of the cosines and the least of them."""

    count: int
    positions: int
    cosine: float
    cosine_least: float


def compare_vectors(source: Path, target: Path, texts: Sequence[Sequence[int]]) -> VectorDistance:
    """Runs both on `texts`, token ids of at least 1 each.

    Raises ValueError (UnsupportedModel among them) where one cannot be loaded, RuntimeError where one gives no vector.
    """
    one, other = _vectors(source, texts), _vectors(target, texts)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(1) / np.maximum(lengths, 1e-300)
    return VectorDistance(len(texts), sum(map(len, texts)), float(cosines.mean()), float(cosines.min()))


def _vectors(folder: Path, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """One row of float64 for each text."""
    outputs: list[Output] = []
    longest = max(map(len, texts))
    options = Options(device="cpu", dtype="float32", weights="plain", max_model_len=max(2, longest),
                      max_running=RUNNING, max_tokens_per_step=CHUNK, kv_tokens=RUNNING * max(2, longest),
                      max_waiting=2**20)  # fmt: skip
    built = build(folder, options, outputs.extend)
    if built.pooling is None:
        raise ValueError(f"{folder} holds a model that generates")
    for number, ids in enumerate(texts):
        request = Request(str(number), list(ids), SamplingParams(max_tokens=1), pool=Pool(built.pooling))
        built.engine.submit(request)
    while built.engine.scheduler.has_work:
        built.engine.step()
    found: dict[int, np.ndarray] = {}
    for output in outputs:
        if output.vector is None:
            raise RuntimeError(output.error or f"it ended with {output.finish}")
        found[int(output.request_id)] = np.frombuffer(output.vector, "<f4").astype("f8")
    return np.stack([found[number] for number in range(len(texts))])
