"""Whether guesses pay: a step with guesses against one without, in seconds for each token, measured as they run.

Owns the measuring and the verdict, apart for each number of requests that decode together, since that is what a step's
cost depends on. Knows no clock: it is told seconds.

Guesses start out wanted. A few steps without come first and are repeated now and then, so that there is something to
compare with. Where a token costs more with guesses they are given up for a while, each time for twice as long, and then
tried again, because a text that cannot be guessed may be followed by one that can.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, median

log = logging.getLogger(__name__)

PLAIN_STEPS = 4  # without guesses, in a row, to compare with
BETWEEN = 256  # steps with guesses until the next such row
JUDGED = 24  # steps with guesses for a verdict
FIRST_REST = 256  # steps
LONGEST_REST = 16384


@dataclass(slots=True)
class _Load:
    """What is known of steps with one number of requests."""

    plain: deque[float] = field(default_factory=lambda: deque(maxlen=4 * PLAIN_STEPS))
    guessed: list[tuple[float, float, int]] = field(default_factory=list)  # seconds, those of thinking, tokens
    lacking: int = PLAIN_STEPS  # plain steps to take now
    until_plain: int = BETWEEN
    resting: int = 0
    rest: int = FIRST_REST


class Payoff:
    """Call `wanted` before each step of decodes and `heard` after it. `given_up` counts how often guesses were."""

    def __init__(self) -> None:
        self.given_up = 0
        self._loads: dict[int, _Load] = {}

    def worth(self, requests: int) -> bool:
        """Whether guesses are not given up for so many requests."""
        load = self._loads.get(requests)
        return load is None or not load.resting

    def wanted(self, requests: int) -> bool:
        """Whether the next step is to guess."""
        load = self._loads.setdefault(requests, _Load())
        return not load.resting and not load.lacking

    def heard(self, requests: int, guessed: bool, tokens: int, seconds: float, thinking: float) -> None:
        """A step of `requests` decodes took `seconds` and gave `tokens`; preparing guesses took `thinking` more."""
        load = self._loads.setdefault(requests, _Load())
        if not guessed:
            load.plain.append(seconds)
            load.lacking = max(0, load.lacking - 1)
            if load.resting:
                load.resting -= 1
                if not load.resting:
                    load.lacking = PLAIN_STEPS
            return
        load.guessed.append((seconds, thinking, tokens))
        load.until_plain -= 1
        if not load.until_plain:
            load.until_plain, load.lacking = BETWEEN, PLAIN_STEPS
        if len(load.guessed) == JUDGED:
            self._judge(requests, load)
            load.guessed.clear()

    def _judge(self, requests: int, load: _Load) -> None:
        """Medians of the times: a step that had to wait for something else says nothing."""
        times, thinking, tokens = zip(*load.guessed, strict=True)
        without = median(load.plain) / requests
        with_guesses = (median(times) + median(thinking)) / fmean(tokens)
        if with_guesses < without:
            load.rest = FIRST_REST
            return
        self.given_up += 1
        load.resting, load.rest = load.rest, min(2 * load.rest, LONGEST_REST)
        log.info(
            "guesses do not pay with %d requests: %.3f ms a token with them (%.2f tokens a step), %.3f without; "
            "next tried in %d steps",
            requests, 1e3 * with_guesses, fmean(tokens), 1e3 * without, load.resting,
        )  # fmt: skip
