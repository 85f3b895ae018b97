"""How fast the control side looks, waits and gives up. Owns these numbers; tests make them small."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """All in seconds but the counts."""

    poll: float = 2.0  # between two health checks
    question: float = 5.0  # for an answer to one
    mute_polls: int = 3  # unanswered in a row, after which a line counts as dead
    stalled: float = (
        300.0  # without progress while requests run: a chunk of prefill of a 70B model takes minutes on a CPU
    )
    ready_poll: float = 0.1  # between two looks at an engine that starts
    verify: float = 120.0  # for the token of a test request
    first_delay: float = 1.0  # before an engine is started again; doubles from failure to failure
    longest_delay: float = 30.0
    failures: int = 3  # within `window`, after which a line is quarantined
    window: float = 600.0
    same_failure: float = 10.0  # a fault reported so soon after a failure is the same one
    cool_down: float = 300.0  # of a quarantined line before it is tried again; doubles while it fails
    longest_cool_down: float = 3600.0
    grace: float = 10.0  # from SIGTERM to SIGKILL
    hang_grace: float = 2.0  # the same for an engine that hangs
    gateway_ready: float = 60.0
    gateway_mute_polls: int = 5  # as `mute_polls`, of a gateway: its clients are cut off when it is ended
    drain_look: float = 0.1  # between two questions to the gateways
