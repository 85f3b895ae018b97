"""`twinline up`: starts a fleet's control side, here or detached; with `--resume`, tries a line again.

Owns the verb's options and what it prints. Must not know how a fleet is run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from twinline.cli import fleet_control
from twinline.cli.fleet_control import (
    LOOK_SECONDS,
    add_fleet,
    ask,
    failed,
    followed,
    last_event,
    line_of,
    meant,
    read_fleet,
)
from twinline.cli.log_writer import STDERR, STDOUT, LogWriter, Writer
from twinline.cli.parser import CliError
from twinline.cli.serve import check_port
from twinline.cli.terminal import harmless
from twinline.lines.fleet import home
from twinline.lines.fleet.engine import Engine
from twinline.lines.fleet.events import Event
from twinline.lines.fleet.file import Fleet
from twinline.lines.roster import GatewaySpec

CONTROL_SECONDS = 30.0  # for a detached control side to answer


def configure(parser: argparse.ArgumentParser) -> None:
    add_fleet(parser)
    parser.add_argument("--detach", action="store_true", help="return when every line serves, or one has failed")
    parser.add_argument(
        "--leave-running",
        action="store_true",
        help="Ctrl-C and SIGTERM end the control side alone; engines and gateways go on, and the next `up` adopts them",
    )
    parser.add_argument("--resume", metavar="LINE", help="try a line again that is quarantined or was drained")


def run(args: argparse.Namespace) -> int:
    if args.resume:
        return _resume(meant(args.fleet), args.resume)
    if args.fleet is None:
        raise CliError("name a fleet file: twinline up FLEET.yaml", code=2)
    path = Path(args.fleet)
    fleet = read_fleet(path)
    directory = home.run_directory(fleet.name)
    home.prepare(directory)
    with home.lock(directory):  # else the control side that holds it is named here
        if Engine.seen(directory, "gateway-0") is None:
            check_port(fleet.gateway.host, fleet.gateway.port, f"`port` under `gateway` in {path}")
    return _detached(path, fleet, directory) if args.detach else _foreground(path, fleet, args.leave_running)


def url_of(gateway: GatewaySpec) -> str:
    host = f"[{gateway.host}]" if ":" in gateway.host else gateway.host
    return f"{'https' if gateway.tls_certificate else 'http'}://{host}:{gateway.port}"


def _foreground(path: Path, fleet: Fleet, leave_running: bool) -> int:
    from twinline.lines.fleet.control import run as control

    out = Writer(STDOUT, sys.stdout.encoding)  # nobody who does not read may hold up the keeping of engines
    logging.basicConfig(
        level="WARNING",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[LogWriter(STDERR)],
    )

    def told(event: Event) -> None:
        out.put(line_of(msgspec.to_builtins(event)))

    def begun(failures: list[str], fleet: Fleet) -> None:
        for failure in failures:
            out.put(harmless(f"not up: {failure}"))
        out.put(_ready(fleet))

    try:
        asyncio.run(control(path, fleet, fleet_control.GATEWAY, leave_running=leave_running, told=told, begun=begun))
    finally:
        out.flush()
    return 0


def _ready(fleet: Fleet) -> str:
    models = ", ".join(model.name + (f" ({model.label})" if model.label else "") for model in fleet.models)
    return f"{models} at {url_of(fleet.gateway)}/v1"


def _detached(path: Path, fleet: Fleet, directory: Path) -> int:
    log = home.log_file(directory, "control")
    with log.open("ab") as out:
        start = out.tell()
        child = subprocess.Popen(
            [*fleet_control.CLI, "up", str(path.resolve()), "--leave-running"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def alive() -> None:
        if child.poll() is not None:
            words = log.read_bytes()[start:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise CliError(f"the control side ended with code {child.returncode}: {words or 'it said nothing'}")

    _answering(directory, child.pid, alive)
    failures = followed(directory, 1, 0, alive)
    if failures:
        raise failed("not everything is up", failures)
    print(_ready(fleet))
    return 0


def _answering(directory: Path, pid: int, alive: Any) -> None:
    end = time.monotonic() + CONTROL_SECONDS
    while True:
        try:
            if ask(directory, "GET", "/state")["pid"] == pid:
                return
        except CliError:
            if time.monotonic() > end:
                raise
        alive()
        time.sleep(LOOK_SECONDS)


def _resume(directory: Path, line: str) -> int:
    after = last_event(directory)
    operation = ask(directory, "POST", "/resume", {"line": line})["operation"]
    failures = followed(directory, operation, after)
    if failures:
        raise failed(f"{line} does not serve", failures)
    return 0
