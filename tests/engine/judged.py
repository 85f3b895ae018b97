"""A crafted DeepSeek checkpoint, the engine on it and the oracle's answer beside it; the same for routing alone.

Owns what counts as agreement and what as a sprung trap.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine import oracle
from tests.engine.checkpoints import R1, Config, Weights, weights, write
from tests.engine.driving import Driven
from torch import Tensor

from twinline.facts.models import spec_from_config

TOLERANCE = 1e-4  # of the largest |logit|, float32
SPRUNG = 10 * TOLERANCE  # a sprung trap is seen with room to spare
IDS = random.Random(1).choices(range(R1["vocab_size"]), k=41)
WAYS = ((), (17, 24), (16, 9) + (1,) * 16)  # whole, in chunks, and decoding one by one


@dataclass(frozen=True)
class Verdict:
    """True or false, and what a failing assertion shows of it."""

    holds: bool
    off: float
    allowed: float

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        return f"<off by {self.off:.3g} of the largest logit, and {self.allowed:.0e} is the limit>"


class Case:
    """A crafted checkpoint, the engine on it, and the oracle's answer."""

    def __init__(self, folder: Path, config: Config = R1, tensors: Weights | None = None, **options: Any) -> None:
        self.config, self.weights = config, weights(config) if tensors is None else tensors
        self.folder = write(folder, config, self.weights)
        self.truth = oracle.run(config, self.weights, IDS)
        self.options = options
        self.line = Driven(self.folder, **options)
        self.line.engine.runner.graphs.why_not = "a test changes its ops"  # a step that is replayed would not see it

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

    def agrees(self) -> Verdict:
        return agrees(max(self.errors()))

    def sprung(self) -> Verdict:
        """Some way through the sequence gives clearly wrong numbers."""
        return sprung(max(self.errors()))


def agrees(error: float) -> Verdict:
    return Verdict(error <= TOLERANCE, error, TOLERANCE)


def sprung(error: float) -> Verdict:
    return Verdict(error > SPRUNG, error, SPRUNG)


Make = Callable[..., Case]


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
