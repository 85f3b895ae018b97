"""`twinline devices`: the cards of this machine, how they are, and what went wrong while looking.

Owns the choice of form and the watching. Must not know any tool or vendor.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from twinline.cards.look import PATIENCE, Seen, look
from twinline.cli.devices_changes import changes
from twinline.cli.devices_text import described
from twinline.cli.parser import CliError, positive

CLEAR = "\x1b[H\x1b[2J"
MOST_CHANGES = 20
LEAST_PAUSE = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines; under --watch one line for each look")
    parser.add_argument(
        "--watch", nargs="?", const=2.0, type=positive, metavar="SECONDS",
        help="look again and again, and tell what changes; Ctrl-C ends it (default: every 2 seconds)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=positive, default=PATIENCE, metavar="SECONDS",
        help=f"how long a management tool may take (default: {PATIENCE:g})",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    def once() -> Seen:
        return look(patience=args.timeout)

    if args.watch is not None and args.watch < LEAST_PAUSE:
        raise CliError(f"--watch needs at least {LEAST_PAUSE:g} seconds, not {args.watch:g}", code=2)
    with _ending_well():
        if args.watch is not None:
            return watch(once, args.watch, args.json, sys.stdout.isatty())
        seen = once()
    print(json.dumps(for_machines(seen), indent=2) if args.json else "\n".join(described(seen)))
    return 0


@contextmanager
def _ending_well() -> Iterator[None]:
    """SIGTERM and SIGHUP end this program as Ctrl-C does, so that no hanging tool is left behind."""
    ends = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def for_machines(seen: Seen) -> dict[str, Any]:
    """Everything, with null for what no tool said; bytes, percent, degrees Celsius, watts."""
    found: dict[str, Any] = msgspec.to_builtins(seen)
    return found


def watch(
    once: Callable[[], Seen], pause: float, machines: bool, terminal: bool, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Looks until it is interrupted, which is how it ends well."""
    before: Seen | None = None
    told: list[str] = []
    try:
        while True:
            seen = once()
            now = time.strftime("%H:%M:%S")
            fresh = [f"{now}  {change}" for change in changes(before, seen)] if before else []
            told = [*told, *fresh][-MOST_CHANGES:]
            if machines:
                print(json.dumps(for_machines(seen)), flush=True)
            elif terminal:
                after = ["", "changes", *(f"  {line}" for line in told)] if told else []
                lines = [f"{now}, every {pause:g} s; Ctrl-C ends", "", *described(seen), *after]
                print(CLEAR + "\n".join(lines), flush=True)
            else:
                for line in described(seen) if before is None else fresh:
                    print(line, flush=True)
            before = seen
            sleep(pause)
    except KeyboardInterrupt:
        return 0
