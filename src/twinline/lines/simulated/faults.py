"""The failures that a simulated line plays on command.

Owns their names, what may be said of each, and whom they strike. Must not know how a failure is carried out.
"""

from __future__ import annotations

import random
from typing import Any, Literal

import msgspec

Mode = Literal[
    "ok", "die", "hang", "slow", "500", "refuse", "200_then_nothing", "reset", "fin", "stall", "late_wake",
    "broken_json", "in_band", "wrong",
]  # fmt: skip
# Of the whole process; at once, or (`die`, `hang`) when a stream has sent `after_tokens`.
WHOLE = frozenset({"die", "hang", "slow"})
# Of a request that has just come.
AT_THE_DOOR = frozenset({"500", "refuse", "200_then_nothing"})
LATE_WAKE_SECONDS = 3.0


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One failure. `ok` ends all others.

    `die`: the process kills itself. `hang`: it answers nothing any more, for `seconds` or until `ok`. `slow`: steps
    take `factor` times as long, for `seconds` or until `ok`. `500`, `refuse` (429): so is every request answered.
    `200_then_nothing`: a head and then silence. `reset`, `fin`: the connection ends, by RST or early by FIN. `stall`:
    the stream sends nothing more; `late_wake`: nothing for `seconds`, then everything. `broken_json`: one event is cut
    in the middle. `in_band`: an error event. `wrong`: tokens by lot in place of the right ones.

    A stream is struck when it has sent `after_tokens` tokens, with `probability`; `streams` are `all`, those under way
    too, or the `next` one alone.
    """

    mode: Mode
    after_tokens: int = 0
    streams: Literal["all", "next"] = "all"
    probability: float = 1.0
    seconds: float | None = None
    factor: float = 4.0

    def __post_init__(self) -> None:
        if self.after_tokens < 0:
            raise ValueError("after_tokens must be 0 or more")
        if not 0 < self.probability <= 1:
            raise ValueError("probability must be greater than 0 and at most 1")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError("seconds must be greater than 0")
        if self.factor <= 0:
            raise ValueError("factor must be greater than 0")
        if self.after_tokens and self.mode in AT_THE_DOOR | {"slow", "ok"}:
            raise ValueError(f"after_tokens means nothing to {self.mode}")
        if self.seconds is not None and self.mode not in ("hang", "slow", "late_wake"):
            raise ValueError(f"seconds means nothing to {self.mode}; it is for hang, slow and late_wake")
        if self.streams == "next" and self.mode == "slow":
            raise ValueError("slow is of the whole line: streams must be all")


def parse(data: bytes | str) -> Fault:
    """From JSON. Raises ValueError, in one line that names the field."""
    try:
        return msgspec.json.decode(data, type=Fault)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def convert(data: Any) -> Fault:
    """From an object of a fleet file. Raises ValueError, in one line that names the field."""
    try:
        return msgspec.convert(data, Fault)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


class Faults:
    """The failure that is on, and whom it strikes."""

    def __init__(self, seed: int = 0) -> None:
        self.on = Fault("ok")
        self._random = random.Random(seed)

    def set(self, fault: Fault) -> None:
        self.on = fault

    def strikes(self) -> Fault | None:
        """What the stream that now begins will meet."""
        fault = self.on
        if fault.mode in ("ok", "slow") or not self.falls_on_one():
            return None
        if fault.streams == "next":
            self.on = Fault("ok")
        return fault

    def falls_on_one(self) -> bool:
        """Whether the lot falls on one stream."""
        return self._random.random() < self.on.probability
