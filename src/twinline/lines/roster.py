"""The roster: what the control side tells the gateways, whole and at once, in one file that is replaced atomically.

Owns its shape, its writing and its reading. Must not know how a line is started nor how a request is routed. Gateways
need nothing else to serve, so they go on when the control side is away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

ROSTER = "roster.json"


class Goals(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's answers should keep to, in seconds."""

    ttft_seconds: float = 2.0
    inter_token_seconds: float = 0.1


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One name that users call. `text` is the folder of its tokenizer and chat template.

    `policy` is one of `fastest`, `cheapest`, `weighted`, `prefer`; `order` are line names for `prefer`. `label` marks a
    demonstration model.
    """

    name: str
    text: str
    policy: str = "cheapest"
    order: tuple[str, ...] = ()
    goals: Goals = Goals()
    label: str | None = None


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """The door. `keys`: `required`, or `off`, which is refused unless bound to loopback."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    keys: str = "off"
    admin_key_env: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    max_body_bytes: int = 16 << 20
    queue_requests: int = 1024
    queue_seconds: float = 60.0
    access_log: bool = False
    log_prompts: bool = False
    log_format: str = "text"
    currency: str = "USD"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of a line, as it is now. `name` is the line's, or `line#2` where it has replicas.

    `url` is where it listens, None while it does not. `facts` is what the engine said of itself: `max_model_len`, ...
    `since` is when it came into its state, seconds of Unix time; `born` when its engine started: another `born` is
    another engine, with an empty cache.
    """

    name: str
    spec: LineSpec
    state: LineState
    reason: str
    url: str | None = None
    facts: Mapping[str, Any] = {}
    since: float = 0.0
    born: float = 0.0


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `generation` grows with every change. `doors` are the settings of those gateways, by index, that
    are to run by others than `gateway`: while it is tried, and until they are replaced."""

    fleet: str
    generation: int
    gateway: GatewaySpec
    doors: Mapping[int, GatewaySpec] = {}
    models: tuple[ModelSpec, ...]
    entries: tuple[Entry, ...]

    def door(self, index: int) -> GatewaySpec:
        """What the gateway of this index runs by."""
        return self.doors.get(index, self.gateway)


_decoder = msgspec.json.Decoder(Roster)


def write(directory: Path, roster: Roster) -> None:
    """Replaces the roster in `directory`; a reader sees the old one or the new one."""
    path = directory / ROSTER
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(msgspec.json.encode(roster))
    fresh.chmod(0o600)
    fresh.replace(path)


def read(directory: Path) -> Roster:
    """Raises OSError, or msgspec.DecodeError for a file that is no roster."""
    return _decoder.decode((directory / ROSTER).read_bytes())
