"""A PostgreSQL of the tests' own: a temporary cluster on a Unix socket, ended with them however they end."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER = "twinline"
START_SECONDS = 60.0


def binaries() -> Path | None:
    """The directory with initdb and postgres: on the path, or where Debian puts them."""
    on_path = shutil.which("initdb")
    if on_path and (Path(on_path).resolve().parent / "postgres").exists():
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]))
    found = [path for path in found if (path / "initdb").exists() and (path / "postgres").exists()]
    return found[-1] if found else None


@contextmanager
def cluster(bin_directory: Path) -> Iterator[str]:
    """The URL of a running server. PostgreSQL refuses to run as root: another user runs it then."""
    with tempfile.TemporaryDirectory(prefix="twinline-pg-") as text:
        directory = Path(text)
        owner: dict[str, Any] = {}
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(directory, user.pw_uid, user.pw_gid)
            owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        directory.chmod(0o755)
        data = directory / "data"
        environment = {**os.environ, "LC_ALL": "C", "HOME": text}
        initdb = [bin_directory / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        made = subprocess.run(initdb, cwd=text, env=environment, capture_output=True, text=True, timeout=120, **owner)
        assert made.returncode == 0, made.stderr
        log = directory / "log"
        settings = ("listen_addresses=", f"unix_socket_directories={text}", "fsync=off", "max_connections=60")
        command = [str(bin_directory / "postgres"), "-D", str(data), *(x for s in settings for x in ("-c", s))]
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, cwd=text, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=_end_with_parent, **owner,
            )  # fmt: skip
        try:
            _wait(server, directory, log)
            yield f"postgresql://{USER}@/postgres?host={text}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            try:
                server.wait(30)
            finally:
                server.kill()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _wait(server: subprocess.Popen[bytes], directory: Path, log: Path) -> None:
    import psycopg

    end = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text("utf-8", "replace")
        try:
            psycopg.connect(host=str(directory), user=USER, dbname="postgres", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
