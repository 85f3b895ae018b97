"""Sets of characters in a regular expression, read as ECMAScript reads them and written for the grammar compiler.

Owns what one character's place in a pattern may hold, and how it is written: as text, or as the inside of a JSON
string, where quotes, backslashes and control characters are escapes. Must not know repeats, groups or schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]  # sorted, apart, of code points; never of surrogates

_LAST = 0x10FFFF
# Code points of one, two, three and four bytes in UTF-8, without surrogates.
_LENGTHS = (((0, 0x7F),), ((0x80, 0x7FF),), ((0x800, 0xD7FF), (0xE000, 0xFFFF)), ((0x10000, _LAST),))
_NAMED = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0, "a": 7, "e": 27}
_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: r"\\"}  # JSON's escapes, as a class writes them
ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F]{1,6}\}|u[0-9a-fA-F]{4}|c[A-Za-z]|.)"
_UNIT = re.compile(rf"{ESCAPE}|.", re.DOTALL)


def _ranges(parts: Iterable[tuple[int, int]]) -> Ranges:
    made: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if made and low <= made[-1][1] + 1:
            made[-1] = made[-1][0], max(high, made[-1][1])
        else:
            made.append((low, high))
    return tuple(made)


def _others(ranges: Ranges) -> Ranges:
    lows = [0, *(high + 1 for _, high in ranges)]
    highs = [*(low - 1 for low, _ in ranges), _LAST]
    return tuple((low, high) for low, high in zip(lows, highs, strict=True) if low <= high)


def _both(one: Ranges, other: Ranges) -> Ranges:
    return _others(_ranges((*_others(one), *_others(other))))


_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 13), (32, 32), (160, 160), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
                  (0x205F, 0x205F), (0x3000, 0x3000))  # fmt: skip
# White space to ECMAScript or Python alone is neither `\s` nor `\S`: an answer validates by both.
_NO_SPACE = _others(_ranges((*_SPACE, (28, 31), (0x85, 0x85), (0xFEFF, 0xFEFF))))
_DIGIT: Ranges = ((48, 57),)
_CLASSES: dict[str, Ranges] = {"d": _DIGIT, "w": _WORD, "s": _SPACE, "D": _others(_DIGIT), "W": _others(_WORD),
                               "S": _NO_SPACE}  # fmt: skip
_DOT = _others(((10, 10), (13, 13), (0x2028, 0x2029)))
_ESCAPED: Ranges = ((0, 31), (34, 34), (92, 92))  # of JSON


def characters(part: str) -> Ranges:
    """What a class, an escape, a dot or a letter stands for. Raises ValueError for what ECMAScript does not say."""
    if part == ".":
        return _DOT
    if len(part) == 1 or part[0] == "\\":
        return _unit(part, in_class=False)
    inside = part[1:-1]
    negated = inside.startswith("^")
    units = _UNIT.findall(inside[negated:])
    found: list[tuple[int, int]] = []
    while units:
        one = _unit(units.pop(0), in_class=True)
        if len(units) > 1 and units[0] == "-":
            last = _unit(units[1], in_class=True)
            if one[0][0] != one[-1][1] or last[0][0] != last[-1][1] or one[0][0] > last[0][0]:
                raise ValueError(f"{part[:40]} has a range without two ends in order")
            one = ((one[0][0], last[0][0]),)
            del units[:2]
        found += one
    if not found:
        raise ValueError("an empty class is not supported")
    return _others(_ranges(found)) if negated else _ranges(found)


def _unit(unit: str, *, in_class: bool) -> Ranges:
    name = unit[1:2] if unit[0] == "\\" else ""
    if not name:
        point = ord(unit)
    elif name in _CLASSES:
        return _CLASSES[name]
    elif name in _NAMED:
        point = _NAMED[name]
    elif name == "b" and in_class:
        point = 8
    elif name in "xu" and len(unit) > 2:
        point = int(unit[2:].strip("{}"), 16)
    elif name == "c" and len(unit) > 2:
        point = ord(unit[2]) % 32
    elif name in "123456789k":
        raise ValueError("back-references are not supported")
    elif name.isascii() and name.isalnum():
        raise ValueError(f"{unit} is not supported")
    else:
        point = ord(name)
    if point > _LAST or 0xD800 <= point < 0xE000:
        raise ValueError(f"{unit} is no character")
    return ((point, point),)


def as_class(ranges: Ranges) -> str:
    """Just these, in ASCII, for the compiler's rules."""
    cut = [part for edges in _LENGTHS for part in _cut(ranges, edges)]
    # They take `[\^a]` for all but `a`.
    last = [(94, 94) for low, _ in cut if low == 94]
    cut = [(low + (low == 94), high) for low, high in cut if (low, high) != (94, 94)] + last
    told = "".join(_said(low) if low == high else f"{_said(low)}-{_said(high)}" for low, high in cut)
    return told if told == r"\^" else f"[{told}]"


def as_text(ranges: Ranges) -> str:
    """The same for its automata, which let overlong forms into a class of several lengths in UTF-8."""
    classes = [as_class(part) for edges in _LENGTHS if (part := _cut(ranges, edges))]
    return classes[0] if len(classes) == 1 else f"(?:{'|'.join(classes)})"


def _cut(ranges: Ranges, edges: Ranges) -> Ranges:
    return tuple((max(low, start), min(high, end)) for low, high in ranges
                 for start, end in edges if max(low, start) <= min(high, end))  # fmt: skip


def _said(point: int) -> str:
    if 32 <= point < 127:
        return "\\" + chr(point) if chr(point) in "\\]-^" else chr(point)
    return f"\\u{{{point:x}}}"


def in_json(ranges: Ranges) -> str:
    """The same inside a JSON string: a character that JSON escapes is written in one way, any other as itself."""
    options = [as_text(plain)] if (plain := _both(ranges, _others(_ESCAPED))) else []
    escaped = [point for low, high in _both(ranges, _ESCAPED) for point in range(low, high + 1)]
    if short := "".join(_SHORT[point] for point in escaped if point in _SHORT):
        options.append(rf"\\[{short}]")
    for high in (0, 1):
        if digits := "".join(f"{point % 16:x}" for point in escaped if point not in _SHORT and point // 16 == high):
            options.append(rf"\\u00{high}[{digits}]")
    return f"(?:{'|'.join(options)})"


def as_rule(ranges: Ranges) -> list[str]:
    """Just these, as options of a rule."""
    cut = [part for edges in _LENGTHS for part in _cut(ranges, edges)]
    parts = (_point(low) if low == high else f"{_point(low)}-{_point(high)}" for low, high in cut)
    return [f"[{''.join(parts)}]"]


def in_json_rule(ranges: Ranges) -> list[str]:
    """The same inside a JSON string, as `in_json` writes them."""
    options = as_rule(plain) if (plain := _both(ranges, _others(_ESCAPED))) else []
    escaped = [point for low, high in _both(ranges, _ESCAPED) for point in range(low, high + 1)]
    if short := [ord(_SHORT[point][-1]) for point in escaped if point in _SHORT]:
        options.append(f'"\\\\" {as_rule(_ranges((point, point) for point in short))[0]}')
    for high in (0, 1):
        if digits := "".join(f"{point % 16:x}" for point in escaped if point not in _SHORT and point // 16 == high):
            options.append(f'"\\\\u00{high}" [{digits}]')
    return options


def _point(point: int) -> str:
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


ANY_IN_JSON = in_json(((0, _LAST),))
