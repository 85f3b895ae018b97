"""What the place can show that output goes to: how wide a line may be, which characters, and which it would obey.

Owns these questions. Must not know what is written.
"""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from pathlib import Path

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but tab and line feed
WIDEST, NARROWEST = 120, 72  # narrower than the latter, columns of words would hold a word or two


def columns() -> int | None:
    """Of the terminal; None where output goes to a file or a pipe."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None


def width() -> int:
    """Columns of the terminal, within limits; WIDEST where output goes to a file or a pipe."""
    there = columns()
    return WIDEST if there is None else min(max(there, NARROWEST), WIDEST)


def taken(text: str) -> int:
    """How many columns the text takes: a Chinese character two, an accent that joins its letter none."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def harmless(text: str) -> str:
    """What others wrote, to be shown and not obeyed: a terminal is told much in control characters, such as what the
    clipboard holds."""
    return _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def show_what_it_can() -> None:
    """From now on a character that the encoding of standard output lacks is written as `?`: no error for a terminal
    in GBK, or a pipe under LC_ALL=C, because a tool or a folder has a name that it cannot show. A standard stream that
    was closed before the start is an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  (for as long as the process lives)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
