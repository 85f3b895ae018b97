"""What is true of a fleet now, whether its control side lives or not.

Owns the gathering: control side, roster, processes and gateways, in one answer. Changes nothing and starts nothing.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from twinline.lines import roster
from twinline.lines.client import LineClient
from twinline.lines.fleet import home
from twinline.lines.fleet.engine import Engine
from twinline.lines.fleet.gateways import Said, said_by
from twinline.lines.http import Target
from twinline.lines.protocol import LineError, LineRefused
from twinline.lines.roster import Entry

ASK_SECONDS = 3.0
# Summed over the gateways; of everything else that they learnt, the one that has seen most says it.
CIRCUIT = ("circuit", "circuit_reason")
SUMMED = frozenset({"in_flight", "queue", "requests", "answers_learnt", "decoding", "prefill_queue_tokens"})


async def asked(directory: Path, method: str, path: str, body: Any = None, seconds: float = 10.0) -> dict[str, Any]:
    """What the control side answers. Raises LineRefused with its status and message, or LineBroken."""
    client = LineClient(f"unix://{home.control_socket(directory)}")
    try:
        status, said = await client.ask(method, path, b"" if body is None else msgspec.json.encode(body), seconds)
    finally:
        client.close()
    answer: dict[str, Any] = msgspec.json.decode(said) if said[:1] == b"{" else {}
    if status != 200:
        mistakes = answer.get("mistakes")
        message = "\n".join(mistakes) if mistakes else answer.get("error") or said[:300].decode("utf-8", "replace")
        raise LineRefused(status, message)
    return answer


async def status(directory: Path) -> dict[str, Any]:
    """The fleet as JSON: `control` (null when it is dead or `mute`), `gateway`, `gateways`, `models`, `lines`.

    Each line has `name`, `line`, `model`, `engine`, `chip`, `precision`, `state`, `reason`, `since`, `url`, `pid`,
    `born`, its prices, `restarts` (null when unknown) and `live`: what the gateways say of it. Raises OSError or
    msgspec.DecodeError when there is nothing to read.
    """
    try:
        said = await asked(directory, "GET", "/state", seconds=ASK_SECONDS)
    except LineError:
        said = _left_behind(directory)
    indices = [gateway["index"] for gateway in said["gateways"]]
    heard = await asyncio.gather(*(_heard(directory, index) for index in indices))
    live = _together([answer for answer in heard if answer is not None])
    for gateway, answer in zip(said["gateways"], heard, strict=True):
        gateway["answers"] = answer is not None
    lines = []
    for line in said["lines"]:
        entry = msgspec.convert(line["entry"], Entry)
        spec = entry.spec
        lines.append(
            {
                "name": entry.name,
                "line": spec.name,
                "model": spec.model,
                "engine": spec.engine,
                "chip": entry.facts.get("label") or spec.chip,
                "precision": spec.precision,
                "weights_class": spec.weights_class,
                "state": str(entry.state),
                "reason": entry.reason,
                "since": entry.since,
                "url": entry.url and Target.shown(entry.url),
                "pid": line["pid"],
                "born": entry.born or None,
                "price_per_hour": spec.price_per_hour,
                "price_per_million_input": spec.price_per_million_input,
                "price_per_million_output": spec.price_per_million_output,
                "restarts": line["restarts"],
                "live": live.get(entry.name, {}),
            }
        )
    return {
        "fleet": said["fleet"],
        "file": said["file"],
        "control": said["pid"] and {"pid": said["pid"], "since": said["since"]},
        "mute": said["pid"] is None and home.controlled(directory),
        "generation": said["generation"],
        "gateway": said["gateway"],
        "gateways": said["gateways"],
        "models": said["models"],
        "lines": lines,
        "left_out": said["left_out"],
    }


async def _heard(directory: Path, index: int) -> Said | None:
    try:
        return await said_by(directory, index, ASK_SECONDS)
    except LineError:
        return None


def _left_behind(directory: Path) -> dict[str, Any]:
    """The same as `/state`, from the roster and the processes that live."""
    left = roster.read(directory)
    lines = []
    for entry in left.entries:
        engine = Engine.seen(directory, entry.name) if entry.spec.url is None else None
        if entry.spec.url is None and engine is None and entry.state.takes_requests:
            reason = "its process has ended, and no control side is there to start it again"
            entry = msgspec.structs.replace(entry, state=roster.LineState.STOPPED, reason=reason, url=None)
        lines.append(
            {"entry": msgspec.to_builtins(entry), "pid": None if engine is None else engine.pid, "restarts": None}
        )
    gateways = []
    for index in range(left.gateway.workers):
        engine = Engine.seen(directory, f"gateway-{index}")
        gateways.append(
            {
                "name": f"gateway-{index}",
                "index": index,
                "state": "stopped" if engine is None else "serving",
                "reason": "its process has ended" if engine is None else "its process lives",
                "since": time.time() if engine is None else engine.standing.born,
                "pid": None if engine is None else engine.pid,
                "restarts": None,
            }
        )
    return {
        "fleet": left.fleet,
        "file": None,
        "pid": None,
        "since": None,
        "generation": left.generation,
        "gateway": msgspec.to_builtins(left.gateway),
        "models": msgspec.to_builtins(left.models),
        "gateways": gateways,
        "lines": lines,
        "left_out": {},
    }


def _together(answers: list[Said]) -> dict[str, dict[str, Any]]:
    """What several gateways say of each line, as one."""
    live: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for answer in answers:
        for line in answer.lines:
            name = str(line.get("name"))
            known = live.setdefault(name, {})
            requests = int(line.get("requests") or 0)
            for field, value in line.items():
                if field in CIRCUIT:  # one gateway that does not ask a line is news, the others that do are not
                    if known.get("circuit", "closed") == "closed" or line.get("circuit") != "closed":
                        known[field] = value
                elif field in SUMMED:
                    known[field] = known.get(field, 0) + (value or 0)
                elif field != "name" and (known.get(field) is None or requests > seen.get(name, -1)):
                    known[field] = value
            seen[name] = max(seen.get(name, -1), requests)
    return live
