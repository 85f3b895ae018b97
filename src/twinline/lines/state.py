"""The states of a line's life and which may follow which.

Owns the words and the legal steps. Knows nothing of processes or HTTP.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class LineState(enum.StrEnum):
    STARTING = "starting"
    VERIFYING = "verifying"
    SERVING = "serving"
    DEGRADED = "degraded"  # still answers, but something about it is known to be wrong
    DRAINING = "draining"  # finishes what it has, takes nothing new
    QUARANTINED = "quarantined"  # failed verification or its starts: takes nothing until it is verified again
    STOPPED = "stopped"

    @property
    def takes_requests(self) -> bool:
        return self in _ABLE


_S = LineState
_ABLE = (_S.SERVING, _S.DEGRADED)  # an enumeration's members take long to look up, and every request asks
NEXT: dict[LineState, frozenset[LineState]] = {
    _S.STARTING: frozenset({_S.VERIFYING, _S.STOPPED}),
    _S.VERIFYING: frozenset({_S.SERVING, _S.QUARANTINED, _S.STOPPED}),
    _S.SERVING: frozenset({_S.DRAINING, _S.DEGRADED, _S.QUARANTINED, _S.STOPPED}),
    _S.DEGRADED: frozenset({_S.SERVING, _S.DRAINING, _S.QUARANTINED, _S.STOPPED}),
    _S.DRAINING: frozenset({_S.STOPPED}),
    _S.QUARANTINED: frozenset({_S.VERIFYING, _S.DRAINING, _S.STOPPED}),
    _S.STOPPED: frozenset({_S.STARTING, _S.QUARANTINED}),
}


class IllegalTransition(RuntimeError):
    """A line was asked to step where its state does not lead."""


class Life:
    """One line's present state and the reason for it. `on_change` hears of each step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_change: Callable[[], None] = lambda: None
        self.state = LineState.STARTING
        self.reason = "it was just created"

    def to(self, state: LineState, reason: str) -> None:
        """Steps to `state`. Raises IllegalTransition if the present state does not lead there."""
        if state not in NEXT[self.state]:
            raise IllegalTransition(f"line {self.name} cannot go from {self.state} to {state} ({reason})")
        log.info("line %s: %s -> %s: %s", self.name, self.state, state, reason)
        self.state, self.reason = state, reason
        self.on_change()

    def told(self, state: LineState, reason: str) -> None:
        """Takes over what the control side says of a line: it has seen the steps between."""
        if state is not self.state:
            log.info("line %s: %s -> %s: %s", self.name, self.state, state, reason)
        changed = state is not self.state
        self.state, self.reason = state, reason
        if changed:
            self.on_change()
