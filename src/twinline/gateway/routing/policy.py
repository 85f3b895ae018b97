"""The rule by which a line is chosen, and the goals it is held to.

Owns names and checks of the rule. Must not know the lines' speeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Rule = Literal["cheapest", "fastest", "weighted", "prefer"]
RULES: tuple[str, ...] = get_args(Rule)

# gateways.md 8.2: lateness is predicted time over the goal. Above the third bound a request waits in the gateway.
TIERS = (0.6, 1.5, 4.0, 10.0)
SATURATED = 3


def tier_of(late: float) -> int:
    """0 (well in time) to 4 (more than ten times the goal)."""
    if late <= 0.6:
        return 0
    if late <= 1.5:
        return 1
    if late <= 4.0:
        return 2
    return 3 if late <= 10.0 else 4


@dataclass(frozen=True)
class Policy:
    """`cheapest`: least work times price among lines in the same tier of lateness. `fastest`: least predicted time,
    with what others lose by it. `weighted`: by `weights`, or the lines' own. `prefer`: the first of `order` that is
    not late, else the least late; lines that are not named come last.

    Raises ValueError for an unknown rule, a goal that is not positive, a negative weight.
    """

    rule: Rule = "cheapest"
    ttft_seconds: float = 2.0
    inter_token_seconds: float = 0.1
    weights: Mapping[str, float] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    sticky: bool = True  # when every line is late, one that holds most of the prompt counts as half as late
    ramp_seconds: float = 30.0  # a new or healed line comes to its full share over that time
    explore: float = 0.01  # share of the requests that go to lines not heard of lately

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"routing rule {self.rule!r} is not known; choose one of {', '.join(RULES)}")
        for name in ("ttft_seconds", "inter_token_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for line, weight in self.weights.items():
            if not weight >= 0:
                raise ValueError(f"the weight of line {line} is {weight}; it must be 0 or more")
        if not 0 <= self.explore <= 0.5:
            raise ValueError(f"explore is {self.explore}; it must be between 0 and 0.5")
