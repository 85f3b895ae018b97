"""How fast the chip is with this model, so that a slow one still climbs the whole ladder in minutes.

Owns that one measurement and what follows from it: what share of their usual length the long checks take.
"""

from __future__ import annotations

import time
from itertools import pairwise

from twinline.verify.ladder import prompts
from twinline.verify.ladder.bench import Bench, once
from twinline.verify.ladder.subject import decoded, subjects

ENOUGH = 0.05  # seconds of a decode step of four sequences at which nothing is shortened
LEAST, WRONG = 0.1, 0.25  # shares


@once
def step_seconds(bench: Bench) -> float:
    """Seconds of a decode step of four sequences on the chip, the best of three after one to warm up."""
    context = min(12, bench.spec.context)
    ids = prompts.sequences(bench, "pace", 4, context)
    times = [time.perf_counter()]
    steps = decoded([context] * 4, [max(context - 4, 1)] * 4)
    subjects(bench).chip.tell(ids, steps, watch=lambda step: times.append(time.perf_counter()))
    return min(b - a for a, b in pairwise(times[1:]))


def share(bench: Bench) -> float:
    """1 for a chip that is fast enough for all of it; on a slow one, or one that is wrong in any case, the long checks
    are shortened to this share."""
    return max(LEAST, min(WRONG if bench.model_is_wrong else 1.0, ENOUGH / step_seconds(bench)))


def some(bench: Bench, usual: int, least: int) -> int:
    return max(min(least, usual), round(usual * share(bench)))
