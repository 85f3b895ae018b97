"""Regular expressions, read as ECMAScript reads them and written for the grammar compiler.

Owns what may stand in one, and how it fits a text or the inside of a JSON string. xgrammar matches whole texts, drops
anchors in the middle and escapes that it does not know with a warning, and knows no look-around, back-references or
word boundaries: all of that is refused here. What it would get wrong, it is given as an automaton.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from twinline.engine.grammars.automaton import Automaton, Builder, of_length
from twinline.engine.grammars.characters import ANY_IN_JSON, ESCAPE, Ranges, as_class, as_text, characters, in_json
from twinline.engine.grammars.grammar import BadGrammar

Node = Callable[[int], int]  # the state in which a part begins, from that in which it ends

LONGEST = 4096
MOST_REPEATS = 1000
MOST_NESTED_REPEATS = 10_000  # of a part in a repeated part
_SYNTAX = frozenset(")|*+?")
MOST_WITH_LENGTH = 200  # states: each takes some 50 ms to compile where a vocabulary has 128k tokens
MOST_UNROLLED = 127  # repeats in an automaton: from 128 on xgrammar counts them, and masks are slow

_PARTS = re.compile(
    rf"{ESCAPE}|\[\^?(?:{ESCAPE}|[^\]\\])*\]|\{{[0-9]*,?[0-9]*\}}|\((?:\?(?::|P?<[A-Za-z_]\w*>|.?.?))?|.", re.DOTALL
)
_COUNT = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")
_ANYTHING = (r"[\s\S\x1c-\x1f\x85\ufeff]", "*")
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def repeats_much(pattern: str) -> bool:
    """Whether masks of an automaton of the pattern are slow: such counts are left to rules."""
    return isinstance(pattern, str) and any(int(n) > MOST_UNROLLED for n in re.findall(r"[{,]([0-9]{1,9})", pattern))


def regex_rule(written: str) -> str:
    """In xgrammar's EBNF."""
    return f"Regex({json.dumps(written)})"


def text_pattern(pattern: Any, what: str) -> str | Automaton:
    """The pattern for the compiler. Raises BadGrammar, naming `what`, for one that it would read otherwise."""
    parts = _parts(pattern, what)
    written = "".join(_written(parts, as_class if repeats_much(pattern) else as_text, what))
    return written if _plain(parts) else _automaton(parts, what)


def json_pattern(pattern: Any, what: str, least: int = 0, most: int | None = None) -> str | Automaton:
    """The same for the inside of a JSON string, of so many characters.

    JSON Schema looks for a pattern anywhere in a string. Where it is anchored at one end, anything may come at the
    other; where at neither, it is read as the whole text: narrower, and what its author most often means.
    """
    parts = _parts(pattern, what)
    begins, ends = parts[:1] == ["^"], parts[-1:] == ["$"]
    if begins is not ends and len(_options(parts)) == 1:
        parts = [*parts, *_ANYTHING] if begins else [*_ANYTHING, *parts]
    made = "".join(_written(parts, in_json, what))
    if _plain(parts) and not least and most is None:
        return made
    automaton = _automaton(parts, what)
    if not least and most is None:
        return automaton
    try:
        limited = automaton.both(of_length(least, most))
    except BadGrammar as error:
        raise BadGrammar(f"{what}: {error}, with the length beside it") from None
    if len(limited.ends) > MOST_WITH_LENGTH:
        raise BadGrammar(f"{what} takes too long to mask with the length beside it: leave one of them out")
    return limited


def _plain(parts: list[str]) -> bool:
    """Whether xgrammar's automata are right: in repeated groups and in options they let repeats go on that ended."""
    return "|" not in parts and not any(
        part == ")" and (behind in _REPEATS or _COUNT.fullmatch(behind)) for part, behind in pairwise(parts)
    )


def _automaton(parts: list[str], what: str) -> Automaton:
    """Of the text of the parts, which are known to be understood."""
    builder = Builder()
    open_groups: list[list[list[Node]]] = [[[]]]  # of each, its options, of each what stands in a row
    for number, part in enumerate(parts):
        row = open_groups[-1][-1]
        if part in ("^", "$"):
            continue
        if part[0] == "(":
            open_groups.append([[]])
        elif part == ")":
            options = open_groups.pop()
            if not open_groups:
                raise BadGrammar(f"{what}: a parenthesis is not opened")
            open_groups[-1][-1].append(_either(builder, options))
        elif part == "|":
            open_groups[-1].append([])
        elif part in _REPEATS or _COUNT.fullmatch(part):
            if part == "?" and number and (parts[number - 1] in _REPEATS or _COUNT.fullmatch(parts[number - 1])):
                continue  # as few as possible: the same texts
            if not row:
                raise BadGrammar(f"{what}: there is nothing to repeat before {part}")
            row.append(partial(builder.repeated, row.pop(), *_counts(part, what)))
        else:
            row.append(partial(builder.character, characters(part)))
    if len(open_groups) > 1:
        raise BadGrammar(f"{what}: a parenthesis is not closed")
    return builder.automaton(_either(builder, open_groups[0])(builder.end))


def _either(builder: Builder, options: list[list[Node]]) -> Node:
    def in_row(row: list[Node], then: int) -> int:
        for node in reversed(row):
            then = node(then)
        return then

    return lambda then: builder.either([in_row(row, then) for row in options])


def _counts(part: str, what: str) -> tuple[int, int | None]:
    if part in _REPEATS:
        return _REPEATS[part]
    least, comma, most = part[1:-1].partition(",")
    if most and int(most) < int(least):
        raise BadGrammar(f"{what}: {part} has its numbers out of order")
    return int(least), int(most) if most else None if comma else int(least)


def json_length(least: int, most: int | None) -> str:
    """A pattern of the inside of JSON strings of so many characters."""
    return f"{ANY_IN_JSON}{{{least},{'' if most is None else most}}}"


def _parts(pattern: Any, what: str) -> list[str]:
    if not isinstance(pattern, str):
        raise BadGrammar(f"{what}: a pattern is a string")
    if len(pattern) > LONGEST:
        raise BadGrammar(f"{what}: the pattern has {len(pattern)} characters, at most {LONGEST} are allowed")
    parts = _anchored_as_one(_PARTS.findall(pattern))
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


def _options(parts: list[str]) -> list[list[str]]:
    """What stands between the bars that are in no group."""
    options: list[list[str]] = [[]]
    depth = 0
    for part in parts:
        depth += (part[0] == "(") - (part == ")")
        if part == "|" and not depth:
            options.append([])
        else:
            options[-1].append(part)
    return options


def _anchored_as_one(parts: list[str]) -> list[str]:
    """`^a$|^b$` is `^(?:a|b)$`: an anchor that all options have is that of the whole."""
    options = _options(parts)
    begins, ends = all(row[:1] == ["^"] for row in options), all(row[-1:] == ["$"] for row in options)
    if len(options) == 1 or not (begins or ends):
        return parts
    inner = [part for row in options for part in ("|", *row[begins : len(row) - ends])]
    return ["^"] * begins + ["(?:", *inner[1:], ")"] + ["$"] * ends


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
