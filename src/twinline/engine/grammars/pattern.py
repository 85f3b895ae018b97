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
MOST_NESTED_REPEATS = 10_000  # of a part in a repeated part
# Those that xgrammar makes a right grammar of. The others are notes: its json-pointer lets a quote end the string.
FORMATS = frozenset("email date time date-time duration ipv4 ipv6 hostname uuid".split())

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
    _check_repeats(parts, what)
    for part in parts:
        if part in ("^", "$"):
            raise BadGrammar(f"{what}: {part} is supported at the ends of the pattern only")
        if part in (r"\b", r"\B", r"\A", r"\Z", r"\z"):
            raise BadGrammar(f"{what}: {part} is not supported")
    # `^a|b` and `a|b$` are anchored on one side of the bar: whole-text matching is narrower, and that is all right.


def _check_repeats(parts: list[str], what: str) -> None:
    """Raises BadGrammar where a part may come too often: the states of a matcher grow with that."""
    most = [1]  # for each open parenthesis, how often something in it is repeated
    last = 1  # the same for what came last
    for part in parts:
        if part == "(":
            most.append(1)
        elif part == ")" and len(most) > 1:
            last = most.pop()
        elif part[0] == "{" and (counts := re.findall("[0-9]{1,9}", part)):
            times = max(map(int, counts))
            last *= times
            if times > MOST_REPEATS or last > MOST_NESTED_REPEATS:
                raise BadGrammar(
                    f"{what}: a part is repeated more than {MOST_REPEATS} times, or {MOST_NESTED_REPEATS} times with "
                    "what is around it"
                )
        elif part not in ("?", "*", "+"):
            last = 1
        most[-1] = max(most[-1], last)
