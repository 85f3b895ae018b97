"""Text as tools print it, made plain: no colours, no carriage returns, no odd blanks; and the words for `not said`.

Owns that alone. Must not know what the text is about.
"""

from __future__ import annotations

import re

MOST_CHARACTERS = 4 << 20
MOST_IN_LINE = 2000

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_BLANKS = re.compile(r"[\u00a0\u2000-\u200a\u202f\u3000]")

# What tools print for a number that they do not have.
ABSENT = r"N/?A|NA\b|-{1,3}|\[[^\]|]{0,40}\]|ERR!?|unknown(?: error)?|none|null|not supported|\?"
_ABSENT = re.compile(rf"(?:{ABSENT})?", re.IGNORECASE)


def plain(text: str) -> str:
    """Without escapes, control and direction characters, carriage returns and exotic blanks; tabs as blanks."""
    text = _ESCAPES.sub("", text[:MOST_CHARACTERS])
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "        ")
    return _BLANKS.sub(" ", _CONTROLS.sub("", text))


def lines(text: str) -> list[str]:
    """The lines of `text`, made plain; overlong ones are left out, since no tool prints such."""
    return [line.rstrip() for line in plain(text).split("\n") if len(line) <= MOST_IN_LINE]


def said(text: str | None) -> str | None:
    """The text without blanks around it; None for `N/A`, `-`, `[Not Supported]`, `ERR!` and their like."""
    if text is None or _ABSENT.fullmatch(text := text.strip()):
        return None
    return text


def clipped(text: str, most: int = 200) -> str:
    """One short line of it, for a finding."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."
