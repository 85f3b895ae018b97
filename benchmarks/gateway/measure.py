"""One gateway, one kind of request, one round: every figure of its row.

Owns the order of phases and what a figure means. Must not know how a gateway is configured.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.processes import Pinned, StartFailed, core_busy_seconds, listening
from gateway.stacks import PORT, Stack
from gateway.tools import (
    FIRST_PORT,
    LETTERS,
    SHORT_TOKENS,
    Kind,
    Progress,
    build,
    letter_ids,
    upstream_command,
)

GATEWAY_CORE, OTHER_CORE = 0, 1
START_SECONDS = 60.0
CONNECTIONS = (1, 64, 256)
COUNTED_CONNECTIONS = 64  # where CPU time per request is taken
SETTLE_SECONDS = 0.5
QUIET_SECONDS = 5.0  # for the p99 of one client that pauses 10 ms: some 450 answers
FEW = 10  # streams are also measured at this part of their number
Row = dict[str, float]


class UpstreamFailed(Exception):
    """The upstream is not there: no figure means anything."""


@dataclass(frozen=True)
class Plan:
    """How much of everything. `rate` is tokens a second of one stream."""

    folder: Path
    times: Path
    seconds: float = 3.0
    streams: int = 1000
    rate: float = 20.0
    stream_seconds: float = 6.0
    lockstep: bool = False
    priority: bool = False

    @property
    def stream_tokens(self) -> int:
        return int(self.rate * self.stream_seconds)


class Bench:
    """The upstream on its core, and rounds against it; a context manager."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.logs = plan.folder / "logs"
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Bench:
        plan = self.plan
        build(plan.folder)
        self.logs.mkdir(exist_ok=True)
        self.progress = Progress(plan.times)
        command = upstream_command(plan.folder, plan.times, plan.rate, lockstep=plan.lockstep)
        if listening(FIRST_PORT):
            raise UpstreamFailed(f"port {FIRST_PORT} is taken")
        self._upstream = Pinned(command, OTHER_CORE, self.logs / "upstream.log", priority=plan.priority)
        try:
            self._upstream.wait_for(f"http://127.0.0.1:{FIRST_PORT}/health", 10)
        except StartFailed as error:
            self._upstream.stop()
            raise UpstreamFailed(str(error)) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._upstream.stop()

    def round(self, stack: Stack, kind: Kind) -> Row:
        """A row; each half has a gateway of its own, so that nothing of the load is left in memory under the streams.

        Raises NotInstalled, StartFailed, RuntimeError when the client could not do its work, or UpstreamFailed.
        """
        logs = self.logs / stack.name.replace(" ", "-")
        row: Row = {}
        for half in (_Round.load, _Round.streams):
            if not self._upstream.running:
                raise UpstreamFailed(f"it ended: {self._upstream.tail()}")
            if listening(PORT):
                raise StartFailed(f"port {PORT} is taken")
            if stack.launch is None:
                row |= half(_Round(self, None, FIRST_PORT, "sk-none", kind, logs))
                continue
            launch = stack.launch(self.plan.folder)
            self.versions[stack.name] = launch.version
            log = logs.with_suffix(".log")
            gateway = Pinned(launch.command, GATEWAY_CORE, log, env=launch.env, priority=self.plan.priority)
            try:
                gateway.wait_for(f"http://127.0.0.1:{PORT}{launch.health}", START_SECONDS)
                row |= half(_Round(self, gateway, PORT, launch.key, kind, logs))
            finally:
                gateway.stop()
        return row


class _Round:
    """One gateway that runs, and what is asked of it. None is the upstream itself."""

    def __init__(self, bench: Bench, gateway: Pinned | None, port: int, key: str, kind: Kind, logs: Path) -> None:
        self._bench, self._plan, self._gateway = bench, bench.plan, gateway
        self._port, self._key, self._kind, self._logs = port, key, kind, logs

    def load(self) -> Row:
        """Latency with one quiet client, then whole answers as fast as 1, 64 and 256 connections get them."""
        row: Row = {}
        self._warm()
        quiet = self._load(1, max(QUIET_SECONDS, self._plan.seconds), pause_ms=10)
        row["low_p50_ms"], row["low_p99_ms"] = quiet["latency_p50"] / 1e3, quiet["latency_p99"] / 1e3
        row["failures"] = failures(quiet)
        for connections in CONNECTIONS:
            began, used, busy = self._clock()
            found = self._load(connections, self._plan.seconds)
            row[f"rps_{connections}"] = found["requests_per_s"]
            row["failures"] += failures(found)
            if connections == COUNTED_CONNECTIONS and found["answered"]:
                ended, used_then, busy_then = self._clock()
                row["cpu_us_per_request"] = (used_then - used) / found["answered"] * 1e6
                row["foreign_share"] = max(0.0, (busy_then - busy - used_then + used) / (ended - began))
        return row

    def streams(self) -> Row:
        """The few streams come first: a gateway that cannot keep up with the many is no use behind them."""
        self._warm()
        idle = self._memory()
        few = self._streams(self._plan.streams // FEW, idle)
        row = {f"few_{name}": value for name, value in few.items()} | self._streams(self._plan.streams, idle)
        return row | {"idle_mb": idle / 1e6}

    def _warm(self) -> None:
        self._load(16, 1.0)
        time.sleep(SETTLE_SECONDS)

    def _clock(self) -> tuple[float, float, float]:
        """Seconds: now, used by the gateway, and used by anybody on its core."""
        used = self._gateway.cpu_seconds() if self._gateway else 0.0
        return time.monotonic(), used, core_busy_seconds(GATEWAY_CORE)

    def _memory(self) -> float:
        return self._gateway.memory_bytes() if self._gateway else 0.0

    def _client(self, words: list[str], tokens: int, *, stream: bool) -> tuple[Pinned, Path]:
        body = self._logs.with_suffix(".request.json")
        body.write_text(json.dumps(self._kind.body(tokens, stream=stream, direct=self._gateway is None)))
        output = self._logs.with_suffix(".client.json")
        command = [
            str(self._plan.folder / "client"), *words, "--port", str(self._port), "--path", self._kind.path,
            "--key", self._key, "--body", str(body),
        ]  # fmt: skip
        return Pinned(command, OTHER_CORE, output, priority=self._plan.priority), output

    def _load(self, connections: int, seconds: float, pause_ms: int = 0) -> dict[str, Any]:
        words = [
            "load", "--connections", str(connections), "--seconds", str(seconds), "--pause-ms", str(pause_ms),
            "--expect", LETTERS[:SHORT_TOKENS],
        ]  # fmt: skip
        client, output = self._client(words, SHORT_TOKENS, stream=False)
        client.wait(seconds + 30)
        return _told(output)

    def _streams(self, streams: int, idle: float) -> Row:
        plan, progress = self._plan, self._bench.progress
        words = [
            "streams", "--streams", str(streams), "--tokens", str(plan.stream_tokens), "--seconds",
            str(plan.stream_seconds), "--times", str(plan.times),
        ]  # fmt: skip
        if self._gateway is None and self._kind.name != "chat":
            words += ["--ids", letter_ids()]
        progress.clear()
        client, output = self._client(words, plan.stream_tokens, stream=True)
        while client.running and progress.read()[0] < streams:
            time.sleep(0.02)
        time.sleep(SETTLE_SECONDS)
        began, used, _ = self._clock()
        tokens = progress.read()[1]
        # The first streams end a ramp before the last: the window closes while all are there.
        time.sleep(max(1.0, plan.stream_seconds - 1.0 - 2 * SETTLE_SECONDS))
        held = self._memory() - idle
        ended, used_then, _ = self._clock()
        arrived = progress.read()[1] - tokens
        client.wait(plan.stream_seconds + 60)
        found = _told(output)
        row: Row = {
            "age_p50_ms": found.get("age_p50", float("nan")) / 1e3,
            "age_p99_ms": found.get("age_p99", float("nan")) / 1e3,
            "tokens_per_s": arrived / (ended - began),
            "core_share": (used_then - used) / (ended - began),
            "kb_per_stream": held / 1e3 / streams,
        }
        if arrived:
            row["cpu_ms_per_1000_tokens"] = (used_then - used) / arrived * 1e6
        for name in ("lost", "doubled", "strange", "unfinished", "errors"):
            row[name] = found[name]
        return row


def failures(found: dict[str, Any]) -> float:
    """Answers that were none: not 200, not the expected text, or a connection that broke."""
    return found["not_200"] + found["wrong"] + found["broken"]


def _told(output: Path) -> dict[str, Any]:
    """Raises RuntimeError when the client wrote no figures."""
    text = output.read_text("utf-8", "replace")
    try:
        return dict(json.loads(text))
    except ValueError:
        raise RuntimeError(f"the client said: {text.strip() or 'nothing'}") from None
