"""How far a JSON value reaches, in text that comes in pieces.

Owns brackets, strings and escapes. Must not know what the value is for, nor whether it is valid: a model's arguments
are handed on as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from twinline.gateway.text.partial import open_end

_IN_STRING = re.compile(r'["\\]')


class ValueScan:
    """Scans one object, array or string, from its first character on.

    A closer (the mark that ends a call) ends a broken value too, but only outside a string: inside one it is text.
    """

    __slots__ = ("_closers", "_depth", "_in_string", "_outside")

    def __init__(self, closers: Sequence[str] = ()) -> None:
        self._closers = tuple(closers)
        self._outside = re.compile("|".join((r'["{}\[\]]', *map(re.escape, self._closers))))
        self._depth = 0
        self._in_string = False

    def push(self, text: str) -> tuple[int, bool]:
        """How many characters are the value's, and whether it has ended there.

        What was not taken must be given again, with more behind it: an escape, or what may become a closer.
        """
        at = 0
        while True:
            if self._in_string:
                found = _IN_STRING.search(text, at)
                if found is None:
                    return len(text), False
                at = found.end()
                if found[0] == "\\":
                    if at == len(text):
                        return found.start(), False
                    at += 1
                    continue
                self._in_string = False
                if not self._depth:
                    return at, True
                continue
            found = self._outside.search(text, at)
            if found is None:
                return len(text) - open_end(text[at:], self._closers), False
            at = found.end()
            mark = found[0]
            if mark == '"':
                self._in_string = True
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at, True
            else:
                return found.start(), True
