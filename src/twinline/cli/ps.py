"""`twinline ps`: what is true of a fleet now: models, lines, gateways, also when its control side is dead.

Owns the listing's looks. Must not know how it is gathered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import msgspec

from twinline.cli.fleet_control import add_fleet, meant
from twinline.cli.parser import CliError
from twinline.cli.table import aligned, fitted
from twinline.cli.terminal import columns, harmless
from twinline.cli.up import url_of
from twinline.lines.fleet.status import status
from twinline.lines.roster import ROSTER, GatewaySpec

Json = dict[str, Any]
SPARE = ("url", "up", "pid", "engine", "restarts", "tokens/s/stream")  # columns that a narrow terminal goes without


def configure(parser: argparse.ArgumentParser) -> None:
    add_fleet(parser)
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    directory = meant(args.fleet)
    try:
        said = asyncio.run(status(directory))
    except FileNotFoundError:
        raise CliError(f"fleet {directory.name} is not up") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise CliError(
            f"{directory / ROSTER} cannot be read ({error}), and no control side answers: `twinline up FLEET.yaml` "
            "takes up what still runs, `twinline down` ends it"
        ) from None
    if args.json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        print(text(said, time.time(), columns()))
    return 0


def text(said: Json, now: float, room: int | None = None) -> str:
    """The whole listing, for people. `now` is in seconds of Unix time, `room` in columns, None for any number."""
    gateway = msgspec.convert(said["gateway"], GatewaySpec)
    control = said["control"]
    parts = [f"fleet {said['fleet']} at {url_of(gateway)}/v1"]
    if control:
        parts[0] += f", control side {control['pid']}, up {span(now - control['since'])}"
    elif said["mute"]:
        parts.append("the control side does not answer: this is what it told the gateways last")
    else:
        parts.append("the control side is dead: nothing is watched or started again until the next `twinline up`")
    for door in said["gateways"]:
        if door["state"] != "serving" or not door["answers"]:
            why = door["reason"] if door["state"] != "serving" else "it does not answer on its socket"
            parts.append(f"{door['name']} is {door['state']}: {why}")
    rows, left_out = fitted(_lines(said, gateway.currency, now), room, SPARE)
    parts += ["", aligned(_models(said)), "", aligned(rows)]
    if left_out:
        parts.append(f"left out here: {', '.join(left_out)} (a wider terminal or --json has all)")
    parts += [f"{line['name']}: {line['reason']}" for line in said["lines"] if line["state"] != "serving"]
    serving = [line for line in said["lines"] if line["state"] in ("serving", "degraded")]
    shut = [line for line in serving if line["live"].get("circuit", "closed") != "closed"]
    parts += [f"{line['name']} is not asked: {line['live'].get('circuit_reason')}" for line in shut]
    parts += [f"{name} is left out: {why}" for name, why in said["left_out"].items()]
    return harmless("\n".join(parts))


def _models(said: Json) -> list[list[str]]:
    rows = [["model", "policy", "lines up"]]
    for model in said["models"]:
        mine = [line for line in said["lines"] if line["model"] == model["name"]]
        up = sum(line["state"] in ("serving", "degraded") for line in mine)
        rows.append([model["name"], model["policy"], f"{up} of {len(mine)}"])
    return rows


def _lines(said: Json, currency: str, now: float) -> list[list[str]]:
    several = len(said["models"]) > 1
    rows = [
        ["line", *(["model"] if several else []), "state", "engine", "chip", f"{currency}/h", "pid", "up", "in flight",
         "tokens/s/stream", "restarts", "url"]
    ]  # fmt: skip
    for line in said["lines"]:
        live = line["live"]
        serves = line["state"] in ("serving", "degraded") and live.get("answers_learnt")
        gap = live.get("predicted_tpot_seconds") if serves else None
        rows.append(
            [
                line["name"],
                *([line["model"]] if several else []),
                line["state"],
                line["engine"],
                line["chip"],
                _price(line),
                _or_dash(line["pid"]),
                span(now - line["born"]) if line["born"] else "-",
                _or_dash(live.get("in_flight")),
                f"{1 / gap:.0f}" if gap else "-",
                _or_dash(line["restarts"]),
                _or_dash(line["url"]),
            ]
        )
    return rows


def _price(line: Json) -> str:
    """By the hour, by a million tokens, or both."""
    tokens = [line["price_per_million_input"], line["price_per_million_output"]]
    hour = f"{line['price_per_hour']:g}"
    if not any(tokens):
        return hour
    return (f"{hour} + " if line["price_per_hour"] else "") + "{:g}/{:g} a million".format(*tokens)


def span(seconds: float) -> str:
    """90 s -> `1m30s`: the two largest units."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{name}")
    return "".join(parts[:2]) or "0s"


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
