"""`twinline apply`: makes a running fleet what its changed file says, with no failed request.

Owns the verb's options and what it prints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from twinline.cli.diff import changes_text
from twinline.cli.fleet_control import ask, failed, followed, last_event, read_fleet
from twinline.lines.fleet import home


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fleet", type=Path, metavar="FLEET.yaml")


def run(args: argparse.Namespace) -> int:
    fleet = read_fleet(args.fleet)
    directory = home.run_directory(fleet.name)
    after = last_event(directory)
    answer = ask(directory, "POST", "/apply", {"fleet": str(args.fleet.resolve())})
    print(changes_text(answer["changes"]), flush=True)
    failures = followed(directory, answer["operation"], after)
    if failures:
        raise failed("not everything was applied", failures)
    return 0
