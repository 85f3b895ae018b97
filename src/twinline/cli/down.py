"""`twinline down`: ends a fleet, whether its control side lives or not.

Owns the verb's options and what it prints.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from twinline.cli.fleet_control import LOOK_SECONDS, add_fleet, ask, meant
from twinline.cli.parser import CliError
from twinline.lines import roster
from twinline.lines.fleet import home
from twinline.lines.fleet.controller import end_processes
from twinline.lines.fleet.pace import Pace

END_SECONDS = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    add_fleet(parser)
    parser.add_argument(
        "--leave-running", action="store_true", help="end the control side alone; engines and gateways go on"
    )


def run(args: argparse.Namespace) -> int:
    directory = meant(args.fleet)
    if home.controlled(directory):
        ask(directory, "POST", "/down", {"leave_running": args.leave_running})
        end = time.monotonic() + END_SECONDS
        while home.controlled(directory):
            if time.monotonic() > end:
                raise CliError(f"fleet {directory.name} did not end within {END_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)
        print(f"fleet {directory.name} is down" if not args.leave_running else f"{directory.name}: control side ended")
        return 0
    if args.leave_running:
        raise CliError(f"the control side of fleet {directory.name} does not run")
    if not directory.is_dir():
        raise CliError(f"fleet {directory.name} is not up")
    with home.lock(directory):
        ended = asyncio.run(end_processes(directory, Pace().grace))
        there = (directory / roster.ROSTER).exists()
        (directory / roster.ROSTER).unlink(missing_ok=True)
    if not ended and not there:
        raise CliError(f"fleet {directory.name} is not up")
    print(f"fleet {directory.name} is down; its control side was gone, ended here: {', '.join(ended) or 'nothing'}")
    return 0
