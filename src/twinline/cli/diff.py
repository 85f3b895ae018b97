"""`twinline diff`: what `apply` would do with a fleet file. Changes nothing.

Owns the verb's options and the looks of changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from twinline.cli.fleet_control import read_fleet
from twinline.lines import roster
from twinline.lines.fleet import home
from twinline.lines.fleet.diff import diff, fleet_of

SIGNS = {"add": "+", "remove": "-", "restart": "!", "scale": "~", "update": "~"}
HOW = {
    ("restart", "line"): "replaced replica by replica: ",
    ("restart", "gateway"): "restarted one by one: ",
    ("update", "line"): "in place: ",
    ("update", "model"): "in place: ",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fleet", type=Path, metavar="FLEET.yaml")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    fleet = read_fleet(args.fleet)
    directory = home.run_directory(fleet.name)
    try:
        running = fleet_of(roster.read(directory))
    except (OSError, msgspec.MsgspecError):
        running = None
    changes = [change.plain() for change in diff(running, fleet)]
    if args.json:
        print(json.dumps({"fleet": fleet.name, "changes": changes}, indent=2, ensure_ascii=False))
    else:
        print(changes_text(changes))
        for line, why in fleet.notes.items():
            print(f"  line {line} is left out: {why}")
    return 0


def changes_text(changes: Iterable[Mapping[str, Any]]) -> str:
    """One change a line: + added, - removed, ! started anew, ~ changed with nothing started or ended."""
    lines = [_text(change) for change in changes]
    return "\n".join(lines) if lines else "nothing would change"


def _text(change: Mapping[str, Any]) -> str:
    told = ", ".join(f"{each['field']} {_shown(each['old'])} -> {_shown(each['new'])}" for each in change["fields"])
    how = HOW.get((change["change"], change["what"]), "")
    return f"{SIGNS[change['change']]} {change['what']} {change['name']}" + (f"  {how}{told}" if told else "")


def _shown(value: Any) -> str:
    return "none" if value in (None, [], {}, "") else str(value).replace("'", "")
