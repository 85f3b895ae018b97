"""`twinline drain`: moves a line's streams elsewhere and ends its engine, until it is resumed.

Owns the verb's options and what it prints.
"""

from __future__ import annotations

import argparse

from twinline.cli.fleet_control import add_fleet, ask, failed, followed, last_event, meant


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("line", metavar="LINE", help="a line, or one replica of it: LINE#2")
    add_fleet(parser, "--fleet")


def run(args: argparse.Namespace) -> int:
    directory = meant(args.fleet)
    after = last_event(directory)
    operation = ask(directory, "POST", "/drain", {"line": args.line})["operation"]
    failures = followed(directory, operation, after)
    if failures:
        raise failed(f"{args.line} was not drained", failures)
    print(f"{args.line} is drained; `twinline up --resume {args.line}` brings it back")
    return 0
