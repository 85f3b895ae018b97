"""`twinline drain`: moves a line's streams elsewhere and ends its engine, until it is resumed.

Owns the verb's options and what it prints.
"""

from __future__ import annotations

import argparse
from typing import Any

from twinline.cli.fleet_control import add_fleet, ask, failed, followed, last_event, meant
from twinline.cli.parser import CliError
from twinline.lines.state import LineState


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("line", metavar="LINE", help="a line, or one replica of it: LINE#2")
    parser.add_argument("--force", action="store_true", help="also if no other line serves its model then")
    add_fleet(parser, "--fleet")


def run(args: argparse.Namespace) -> int:
    directory = meant(args.fleet)
    if not args.force and (models := _left_alone(ask(directory, "GET", "/state")["lines"], args.line)):
        raise CliError(
            f"no other line serves {', '.join(models)}: its requests would get 503 until {args.line} is back; "
            f"--force drains it all the same"
        )
    after = last_event(directory)
    operation = ask(directory, "POST", "/drain", {"line": args.line})["operation"]
    failures = followed(directory, operation, after)
    if failures:
        raise failed(f"{args.line} was not drained", failures)
    print(f"{args.line} is drained; `twinline up --resume {args.line}` brings it back")
    return 0


def _left_alone(lines: list[dict[str, Any]], line: str) -> list[str]:
    """The models that nothing would serve without the line, or replica, and that something serves now."""

    def serving(entries: list[dict[str, Any]]) -> set[str]:
        return {e["spec"]["model"] for e in entries if LineState(e["state"]).takes_requests}

    entries = [each["entry"] for each in lines]
    others = [entry for entry in entries if line not in (entry["name"], entry["spec"]["name"])]
    return sorted(serving(entries) - serving(others))
