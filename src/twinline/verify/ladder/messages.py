"""What the process that climbs and the one that watches it say to each other, a JSON line each.

Owns the words. Imports no torch: the watching side has none.
"""

from __future__ import annotations

import msgspec

from twinline.facts.profiles import Choice, Refused
from twinline.verify.ladder.finding import Finding, Trial


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """What to climb. `refused`: found out by a process before this one, which broke."""

    trial: Trial
    levels: tuple[str, ...]
    refused: tuple[Refused, ...] = ()


class Known(msgspec.Struct, frozen=True, kw_only=True, tag="known"):
    """What is on trial, as the process that has it sees it. `printed` is what the driver calls the chip."""

    device_name: str
    simulated: bool
    device_type: str
    printed: str
    dtype: str
    dtypes: tuple[str, ...]
    architecture: str
    versions: dict[str, str]


class Chosen(msgspec.Struct, frozen=True, kw_only=True, tag="chosen"):
    """Who would serve each op, after what was refused."""

    choices: tuple[Choice, ...]


class Entered(msgspec.Struct, frozen=True, kw_only=True, tag="entered"):
    level: str


class Doing(msgspec.Struct, frozen=True, kw_only=True, tag="doing"):
    check: str


class Found(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    finding: Finding


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag="lost"):
    """The device does not answer any more, not even to an addition: `finding` is what it failed at, and the last."""

    finding: Finding


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The end of the climb. `error`: why it could not even begin."""

    error: str = ""


Message = Known | Chosen | Entered | Doing | Found | Lost | Ended
DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
