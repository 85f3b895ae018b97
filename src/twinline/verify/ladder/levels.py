"""Which levels there are, in the order in which a chip climbs them.

Owns the list. A level is a module with `climb(bench) -> Iterator[Finding]`; it is imported only when it is climbed.
Numbers follow the ladder of DESIGN.md's reference; level 4 there is one training step, which comes with training: here
its place is taken by the collectives that serving needs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """`seconds`: a check of this level that says nothing for longer counts as hung."""

    number: int
    name: str
    module: str
    title: str
    seconds: float = 60.0


LEVELS: tuple[Level, ...] = (
    Level(0, "device", "twinline.verify.ladder.device", "the device: memory, copies, dtypes, errors"),
    Level(1, "ops", "twinline.verify.ladder.ops", "every op against float64, by three rules"),
    Level(2, "layers", "twinline.verify.ladder.layers", "whole layers, prefill against decode"),
    Level(3, "model", "twinline.verify.ladder.model", "log-probabilities of the whole model, and its arms"),
    Level(4, "collectives", "twinline.verify.ladder.collectives", "sums and exchanges between devices"),
    Level(5, "long", "twinline.verify.ladder.long", "long decoding: drift and memory"),
    Level(6, "tasks", "twinline.verify.ladder.tasks", "tasks, paired with the reference"),
    Level(7, "determinism", "twinline.verify.ladder.determinism", "the same again, and in other batches"),
    Level(8, "faults", "twinline.verify.ladder.faults", "what happens when it breaks"),
    Level(9, "speed", "twinline.verify.ladder.speed", "each op as a share of its roofline"),
)
