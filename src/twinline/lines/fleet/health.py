"""Whether a line answers and makes progress: what one look tells, and what several in a row do.

Owns the reading of health and progress. Must not know what is done about a line that is lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from twinline.lines.drivers.driver import EngineMetrics
from twinline.lines.fleet.pace import Pace
from twinline.lines.http import ConnectionBroken
from twinline.lines.line import Line
from twinline.lines.protocol import LineError


async def well(line: Line, seconds: float) -> str | None:
    """None if the line's health is good, or if only a request can tell; else what is wrong."""
    path = line.driver.health_path
    if path is None:
        return None
    try:
        status, body = await line.client.ask("GET", path, seconds=seconds)
    except LineError as error:
        return str(error)
    return None if status == 200 else f"{path} answers {status}: {_message(body)}"


async def unreachable(line: Line) -> str | None:
    """None if something listens at the line's address; else what is wrong."""
    try:
        connection = await line.client.pool.connect()
    except ConnectionBroken as error:
        return str(error)
    connection.close()
    return None


async def facts_of(line: Line, seconds: float) -> Mapping[str, Any]:
    """What the engine says of itself in `/v1/models`; nothing where it does not answer that, or in no shape known."""
    try:
        status, body = await line.client.ask("GET", "/v1/models", seconds=seconds)
        return line.driver.facts(_own(line, msgspec.json.decode(body, type=dict[str, Any]))) if status == 200 else {}
    except (LineError, msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def _own(line: Line, models: dict[str, Any]) -> Mapping[str, Any]:
    """Of several that a remote lists, the line's own model; all, where none is called so. vLLM and SGLang say of an
    adapter only whose it is: what it does not tell itself is that model's."""
    listed = {entry.get("id"): entry for entry in models.get("data") or ()}
    own = listed.get(line.spec.known_as)
    if own is None:
        return models
    told = {name: value for name, value in own.items() if value is not None}
    return models | {"data": [listed.get(own.get("parent"), {}) | told]}


class Watch:
    """Looks at one line again and again. `mute` counts the unanswered looks in a row, `why` is the last one's fault."""

    def __init__(self, line: Line, pace: Pace) -> None:
        self._line, self._pace = line, pace
        self._progress: object = None
        self._moved = time.monotonic()
        self.mute = 0
        self.why = ""

    async def look(self) -> str | None:
        """Why the line counts as lost, or None."""
        wrong = await well(self._line, self._pace.question)
        if wrong is not None:
            self.mute += 1
            self.why = wrong
            return (
                f"it left {self.mute} health checks unanswered ({wrong})"
                if self.mute >= self._pace.mute_polls
                else None
            )
        self.mute = 0
        metrics = await self._metrics()
        vectors = self._line.vectors
        # Else its count stands still through honest work: a gateway, which knows how much that is, tells of a hang.
        told = vectors is None or vectors.counted
        if not told or not metrics.running or metrics.progress is None or metrics.progress != self._progress:
            self._progress, self._moved = metrics.progress, time.monotonic()
        elif time.monotonic() - self._moved >= self._pace.stalled:
            return f"its engine made no progress for {self._pace.stalled:g} s with {metrics.running} requests running"
        return None

    async def _metrics(self) -> EngineMetrics:
        path = self._line.driver.metrics_path
        if path is None:
            return EngineMetrics()
        try:
            status, body = await self._line.client.ask("GET", path, seconds=self._pace.question)
        except LineError:
            return EngineMetrics()
        return self._line.driver.metrics(body) if status == 200 else EngineMetrics()


def _message(body: bytes) -> str:
    return " ".join(body[:300].decode("utf-8", "replace").split())
