"""Regular expressions that the grammar compiler reads as everybody does.

Owns what may stand in one. xgrammar matches whole texts, takes `^` and `$` at either end away and drops others with a
warning; it knows no look-around, back-references or word boundaries. What it would drop is refused here; what it cannot
read it refuses itself.
"""

from __future__ import annotations

import re
from typing import Any

from twinline.engine.grammars.grammar import BadGrammar

LONGEST = 4096
MOST_REPEATS = 1000
FORMATS = frozenset(
    "email date time date-time duration ipv4 ipv6 hostname uuid uri uri-reference uri-template json-pointer "
    "relative-json-pointer".split()
)  # those that xgrammar makes a grammar of; others are notes

_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[0-9]*,?[0-9]*\}|.", re.DOTALL)


def check_pattern(pattern: Any, what: str) -> None:
    """Raises BadGrammar, naming `what`, for a pattern that would be read otherwise than it is meant."""
    if not isinstance(pattern, str):
        raise BadGrammar(f"{what}: a pattern is a string")
    if len(pattern) > LONGEST:
        raise BadGrammar(f"{what}: the pattern has {len(pattern)} characters, at most {LONGEST} are allowed")
    inner = pattern.removeprefix("^")
    parts = _PARTS.findall(inner)
    if parts and parts[-1] == "$":
        parts.pop()
    for part in parts:
        if part in ("^", "$"):
            raise BadGrammar(f"{what}: {part} is supported at the ends of the pattern only")
        if part in (r"\b", r"\B", r"\A", r"\Z", r"\z"):
            raise BadGrammar(f"{what}: {part} is not supported")
        if part[0] == "{" and any(int(n) > MOST_REPEATS for n in re.findall("[0-9]+", part)):
            raise BadGrammar(f"{what}: a part is repeated more than {MOST_REPEATS} times")
    # `^a|b` and `a|b$` are anchored on one side of the bar: whole-text matching is narrower, and that is all right.
