"""What the place can show that output goes to: how wide a line may be, and which characters.

Owns both questions. Must not know what is written.
"""

from __future__ import annotations

import io
import os
import sys

WIDEST, NARROWEST = 120, 72  # narrower than the latter, columns of words would hold a word or two


def width() -> int:
    """Columns of the terminal, within limits; WIDEST where output goes to a file or a pipe."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return WIDEST
    return min(max(columns, NARROWEST), WIDEST)


def show_what_it_can() -> None:
    """From now on a character that the encoding of standard output lacks is written as `?`: no error for a terminal
    in GBK, or a pipe under LC_ALL=C, because a tool or a folder has a name that it cannot show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
