"""What the fleet's verbs share: which fleet is meant, how its control side is asked, and what is told meanwhile.

Owns the words for mistakes in a fleet file and for events. Must not know any one verb.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twinline.cli.parser import CliError
from twinline.cli.terminal import harmless
from twinline.lines.fleet import home
from twinline.lines.fleet.file import Fleet, load, name_of
from twinline.lines.fleet.marked import FileFaults
from twinline.lines.fleet.status import asked
from twinline.lines.protocol import LineError, LineRefused

GATEWAY = (sys.executable, "-m", "twinline.gateway.process")
CLI = (sys.executable, "-m", "twinline.cli")
LOOK_SECONDS = 0.2


def add_fleet(parser: argparse.ArgumentParser, flag: str = "fleet") -> None:
    """The fleet that is meant: by name or by file; the only one that runs when it is not given."""
    how: dict[str, Any] = {"metavar": "FLEET", "help": "its name or its file (default: the only fleet that runs)"}
    if not flag.startswith("-"):
        how["nargs"] = "?"
    parser.add_argument(flag, **how)


def read_fleet(path: Path) -> Fleet:
    """The fleet file, checked whole. A CliError says how many mistakes there are; each is shown before, one a line, and
    so is what holds but may be meant otherwise."""
    try:
        fleet = load(path, os.environ)
    except FileFaults as error:
        raise refused(path, error.lines()) from None
    except OSError as error:
        raise unread(path, error) from None
    for doubt in fleet.doubts:
        print(f"twinline: warning: {path}:{doubt.line}: {doubt.text}", file=sys.stderr)
    return fleet


def _name_in(path: Path) -> str:
    """What else is in the file does not matter to who ends a fleet, or looks at it: it may lack variables here."""
    try:
        return name_of(path)
    except FileFaults as error:
        raise refused(path, error.lines()) from None
    except OSError as error:
        raise unread(path, error) from None


def unread(path: Path, error: OSError) -> CliError:
    return CliError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}", code=2)


def refused(path: Path, mistakes: list[str]) -> CliError:
    if len(mistakes) == 1:
        return CliError(mistakes[0], code=2)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return CliError(f"{path} has {len(mistakes)} mistakes", code=2)


def meant(name: str | None) -> Path:
    """The run directory of the fleet that is meant. Raises CliError."""
    if name is not None:
        path = Path(name)
        if path.suffix in (".yaml", ".yml"):
            return home.run_directory(_name_in(path) if path.is_file() else path.stem)
        directory = home.run_directory(name)
        if not home.NAME.fullmatch(name) or not directory.is_dir():
            raise CliError(f"no fleet {name!r} has run here{_listed()}")
        return directory
    there = home.fleets()
    if len(there) == 1:
        return home.run_directory(there[0])
    if not there:
        raise CliError("no fleet runs here: `twinline up FLEET.yaml` starts one")
    raise CliError(f"several fleets run here, name one: {', '.join(there)}", code=2)


def _listed() -> str:
    there = home.fleets()
    return f"; there are {', '.join(there)}" if there else ""


def ask(directory: Path, method: str, path: str, body: Any = None, seconds: float = 30.0) -> dict[str, Any]:
    """What the control side answers. Raises CliError when it is not there or refuses."""
    try:
        return asyncio.run(asked(directory, method, path, body, seconds))
    except LineRefused as error:
        if error.code == "line_unreachable":
            raise CliError(
                f"the control side of fleet {directory.name} does not run: `twinline up FLEET.yaml` starts it again"
            ) from None
        raise CliError(error.message) from None
    except LineError as error:
        raise CliError(f"the control side of fleet {directory.name} does not answer: {error}") from None


def last_event(directory: Path) -> int:
    """The number of the newest event."""
    events = ask(directory, "GET", "/state")["events"]
    return int(events[-1]["seq"]) if events else 0


def followed(
    directory: Path,
    operation: int,
    after: int,
    alive: Callable[[], None] = lambda: None,
    told: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[str]:
    """Shows events until an operation has ended; what failed in it. `alive` is called between looks and may raise."""
    while True:
        state = ask(directory, "GET", f"/state?after={after}")
        for event in state["events"]:
            after = int(event["seq"])
            (told or show)(event)
        found = next((each for each in state["operations"] if each["id"] == operation), None)
        if found is not None and found["state"] != "running":
            return list(found["failures"])
        alive()
        time.sleep(LOOK_SECONDS)


def show(event: Mapping[str, Any]) -> None:
    print(line_of(event), flush=True)


def line_of(event: Mapping[str, Any]) -> str:
    """One change of state, as a line; what a reason has beside, such as an engine's last words, is indented."""
    clock = time.strftime("%H:%M:%S", time.localtime(float(event["at"])))
    reason = harmless(str(event["reason"])).replace("\n", "\n          ")
    return f"{clock}  {event['name']:<16} {event['state']:<11} {reason}"


def failed(what: str, failures: list[str]) -> CliError:
    return CliError(f"{what}: {'; '.join(failures)}")
