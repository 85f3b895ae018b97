"""Regular expressions, read as ECMAScript reads them and written for the grammar compiler.

Owns what may stand in one, and how it fits a text or the inside of a JSON string. xgrammar matches whole texts, drops
anchors in the middle and escapes that it does not know with a warning, and knows no look-around, back-references or
word boundaries: all of that is refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from twinline.engine.grammars.characters import ANY_IN_JSON, ESCAPE, Ranges, as_class, as_text, characters, in_json
from twinline.engine.grammars.grammar import BadGrammar

LONGEST = 4096
MOST_REPEATS = 1000
MOST_NESTED_REPEATS = 10_000  # of a part in a repeated part
_SYNTAX = frozenset(")|*+?")
MOST_UNROLLED = 127  # repeats in an automaton: from 128 on xgrammar counts them, and masks are slow
# Those that xgrammar makes a right grammar of. The others are notes: its json-pointer lets a quote end the string.
FORMATS = frozenset("email date time date-time duration ipv4 ipv6 hostname uuid".split())

_PARTS = re.compile(
    rf"{ESCAPE}|\[\^?(?:{ESCAPE}|[^\]\\])*\]|\{{[0-9]*,?[0-9]*\}}|\((?:\?(?::|P?<[A-Za-z_]\w*>|.?.?))?|.", re.DOTALL
)
_COUNT = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|.)")
_NAME = "twinline-pattern-"
_PLACE = re.compile(rf'Regex\("\^{_NAME}([0-9]+)\$", json_string=true\)')
_LEFT = re.compile(rf'(?<!\\)"\^{_NAME}')  # in another place; within a literal its quotes are escaped


class Patterns:
    """The patterns of a schema, of which xgrammar is given names: of what JSON escapes, it would forbid all in a
    pattern that can do without, and in any other let it in as it is."""

    def __init__(self) -> None:
        self._written: list[str] = []

    def name(self, written: str) -> str:
        self._written.append(written)
        return f"^{_NAME}{len(self._written) - 1}$"

    def __bool__(self) -> bool:
        return bool(self._written)

    def put_into(self, ebnf: str) -> str:
        """The grammar that xgrammar made of the schema, with what the names stand for."""
        # It writes `é` as `\xe9`, and would read all hexadecimal digits behind that as its own.
        ebnf = _ESCAPED.sub(lambda found: f"\\u00{found[1]}" if found[1] else found[0], ebnf)
        made = _PLACE.sub(lambda found: regex_rule(self._written[int(found[1])]), ebnf)
        if _LEFT.search(made):  # an xgrammar that writes grammars otherwise: a name must not be taken for the pattern
            raise BadGrammar("its patterns cannot be put into the grammar that this version of xgrammar writes")
        return made


def repeats_much(pattern: str) -> bool:
    """Whether masks of an automaton of the pattern are slow: such counts are left to rules."""
    return isinstance(pattern, str) and any(int(n) > MOST_UNROLLED for n in re.findall(r"[{,]([0-9]{1,9})", pattern))


def regex_rule(written: str) -> str:
    """In xgrammar's EBNF."""
    return f"Regex({json.dumps(written)})"


def text_pattern(pattern: Any, what: str) -> str:
    """The pattern for the compiler. Raises BadGrammar, naming `what`, for one that it would read otherwise."""
    return "".join(_written(_parts(pattern, what), as_class if repeats_much(pattern) else as_text, what))


def json_pattern(pattern: Any, what: str) -> str:
    """The same for the inside of a JSON string.

    JSON Schema looks for a pattern anywhere in a string. Where it is anchored at one end, anything may come at the
    other; where at neither, it is read as the whole text: narrower, and what its author most often means.
    """
    parts = _parts(pattern, what)
    made = "".join(_written(parts, in_json, what))
    if not _has_top_bar(parts):
        begins, ends = parts[:1] == ["^"], parts[-1:] == ["$"]
        made += f"{ANY_IN_JSON}*" if begins and not ends else ""
        made = f"{ANY_IN_JSON}*{made}" if ends and not begins else made
    return made


def json_length(least: int, most: int | None) -> str:
    """A pattern of the inside of JSON strings of so many characters."""
    return f"{ANY_IN_JSON}{{{least},{'' if most is None else most}}}"


def _parts(pattern: Any, what: str) -> list[str]:
    if not isinstance(pattern, str):
        raise BadGrammar(f"{what}: a pattern is a string")
    if len(pattern) > LONGEST:
        raise BadGrammar(f"{what}: the pattern has {len(pattern)} characters, at most {LONGEST} are allowed")
    parts = _PARTS.findall(pattern)
    inner = parts[parts[:1] == ["^"] : len(parts) - (parts[-1:] == ["$"])]
    _check_repeats(inner, what)
    for part in inner:
        if part in ("^", "$"):
            raise BadGrammar(f"{what}: {part} is supported at the ends of the pattern only")
    # `^a|b` and `a|b$` are anchored on one side of the bar: whole-text matching is narrower, and that is all right.
    return parts


def _written(parts: list[str], write: Callable[[Ranges], str], what: str) -> Iterator[str]:
    for part in parts:
        if part in ("^", "$"):
            continue
        if part.startswith("(?") and part != "(?:" and not part.endswith(">"):
            told = "look-around is" if re.match(r"\(\?<?[=!]", part) else f"{part} is"
            raise BadGrammar(f"{what}: {told} not supported")
        if part[0] == "(":
            yield "(?:"
        elif part in _SYNTAX or _COUNT.fullmatch(part):
            yield part
        elif part[0] == "{":
            raise BadGrammar(f"{what}: {part} is no count of repeats: write \\{{ for the character")
        else:
            try:
                yield write(characters(part))
            except ValueError as error:
                raise BadGrammar(f"{what}: {error}") from None


def _has_top_bar(parts: list[str]) -> bool:
    depth = 0
    for part in parts:
        depth += (part[0] == "(") - (part == ")")
        if part == "|" and not depth:
            return True
    return False


def _check_repeats(parts: list[str], what: str) -> None:
    """Raises BadGrammar where a part may come too often: the states of a matcher grow with that."""
    most = [1]  # for each open parenthesis, how often something in it is repeated
    last = 1  # the same for what came last
    for part in parts:
        if part[0] == "(":
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
