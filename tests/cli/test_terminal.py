"""How wide lines may be, on a real terminal of a given width and in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from twinline.cli.fleet_control import line_of
from twinline.cli.table import aligned
from twinline.cli.terminal import NARROWEST, WIDEST


def lines(columns: int) -> list[str]:
    """What `twinline fit` writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "twinline.cli", "fit", "deepseek-r1", "--chip", "h20x8"]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    written = bytearray()
    try:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    return written.decode().replace("\r", "").splitlines()


@pytest.mark.parametrize(("columns", "kept"), [(80, 80), (100, 100), (40, NARROWEST), (300, WIDEST)])
def test_notes_keep_to_the_width_of_the_terminal(columns: int, kept: int) -> None:
    found = lines(columns)
    ledger = found[found.index("each of 8 devices, laid out as tp8") :]
    widest = max(map(len, ledger))
    assert kept - 12 < widest <= kept
    assert any(line.split()[:3] == ["left", "for", "the"] and line.endswith(" 4.01") for line in ledger)


def test_a_lines_words_are_shown_and_not_obeyed() -> None:
    assert aligned([["a\x1b[2J", "b"]]) == r"a\x1b[2J  b"
    event = {"at": 0.0, "name": "cpu", "state": "stopped", "reason": "it said\r\n12:00:00  cpu  serving\x1b[1A"}
    first, second = line_of(event).split("\n")
    assert first.endswith("it said") and second == r"          12:00:00  cpu  serving\x1b[1A"
