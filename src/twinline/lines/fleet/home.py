"""Where a running fleet keeps its files, and that one control side alone works there.

Owns the run directory: its place, its names, its lock. Must not know what is in the files.

    TWINLINE_HOME/run/FLEET/   roster.json   what gateways read
                               control.sock  what verbs ask          control.lock   held by the control side
                               gateway-N.sock                        held.json      lines drained by hand
                               engines/NAME.json                     logs/NAME.log
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinline.store.home import home

LONGEST_SOCKET_PATH = 100  # bytes; the kernels' limits are 104 to 108 with the closing zero
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OURS = re.compile(r"control|gateway-\d+")  # names of state files and logs that no line may have


class FleetIsUp(RuntimeError):
    """Another control side works on this fleet."""


def run_directory(fleet: str) -> Path:
    return home() / "run" / fleet


def fleets() -> list[str]:
    """The names of the fleets that have a roster: they run, or ran until something broke."""
    return sorted(path.parent.name for path in (home() / "run").glob("*/roster.json"))


def control_socket(directory: Path) -> Path:
    return directory / "control.sock"


def gateway_socket(directory: Path, index: int) -> Path:
    return directory / f"gateway-{index}.sock"


def state_file(directory: Path, name: str) -> Path:
    return directory / "engines" / f"{name}.json"


def state_files(directory: Path) -> list[Path]:
    return sorted((directory / "engines").glob("*.json"), key=lambda path: path.stem)


def log_file(directory: Path, name: str) -> Path:
    return directory / "logs" / f"{name}.log"


def prepare(directory: Path) -> None:
    """Makes the directory, for its owner alone. Raises ValueError when a socket's path there would be too long."""
    longest = len(os.fsencode(gateway_socket(directory, 999)))
    if longest > LONGEST_SOCKET_PATH:
        raise ValueError(
            f"{directory} is too long for a Unix socket in it ({longest} bytes, at most {LONGEST_SOCKET_PATH}): "
            "set TWINLINE_HOME to a shorter path"
        )
    for part in (directory, directory / "engines", directory / "logs"):
        part.mkdir(parents=True, exist_ok=True)
        part.chmod(0o700)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Holds the fleet for one control side; the kernel lets go of it when the process ends, however it ends.

    Raises FleetIsUp. The descriptor is closed in children, so an engine that lives on does not hold the lock.
    """
    descriptor = os.open(directory / "control.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise FleetIsUp(f"fleet {directory.name} is up already, under process {pid}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def controlled(directory: Path) -> bool:
    """Whether a control side holds the fleet."""
    try:
        descriptor = os.open(directory / "control.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
