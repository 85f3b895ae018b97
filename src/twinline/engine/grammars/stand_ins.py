"""The grammar that xgrammar writes of a JSON schema, mended as text where it would not be what the schema says.

Owns what stands in for a pattern and for a number until then, and the rules of JSON strings. Must not know schemas.
"""

from __future__ import annotations

import json
import re
from typing import Any

from twinline.engine.grammars.automaton import Automaton
from twinline.engine.grammars.characters import in_json_rule
from twinline.engine.grammars.grammar import BadGrammar
from twinline.engine.grammars.pattern import regex_rule

_PATTERN = "twinline-pattern-"
_PLACE = re.compile(rf'Regex\("\^{_PATTERN}([0-9]+)\$", json_string=true\)')
_LEFT = re.compile(rf'(?<!\\)"\^{_PATTERN}')  # in another place; within a literal its quotes are escaped
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|.)")
_HEX = "[A-Fa-f0-9]"
_ANY_ESCAPE = f'("u" {_HEX} {_HEX} {_HEX} {_HEX})'
_NO_HALVES = (
    f'("u" ([0-9A-CEFa-cef] {_HEX} | [Dd] [0-7]) {_HEX} {_HEX}) | '
    f'("u" [Dd] [89ABab] {_HEX} {_HEX} "\\\\u" [Dd] [C-Fc-f] {_HEX} {_HEX})'
)
# In a string xgrammar takes surrogates for characters, alone too, and control characters where it counts them. No
# literal can hold these words: its backslashes and quotes are escaped.
_STRINGS = (
    (r"[^\"\\\r\n]", r"[^\0-\u001f\"\\\ud800-\udfff]"),
    (r"[^\0-\u001f\"\\\r\n", r"[^\0-\u001f\"\\\ud800-\udfff"),
    (_ANY_ESCAPE, _NO_HALVES),
)


class StandIns:
    """What xgrammar is given for the patterns and numbers of a schema. Of what JSON escapes, it would forbid all in a
    pattern that can do without, and in any other let it in as it is; 0.1 it would write with 17 digits."""

    def __init__(self, schema: str = "") -> None:
        """`schema`: as the client wrote it, so that no text of its own is taken for a stand-in."""
        self._patterns: list[str | Automaton] = []
        self._numbers: list[str] = []
        self.shared = False  # whether rules of a client's own stand beside those of schemas, which must not be mended
        self._number = "twinline-number-"
        while self._number in schema:
            self._number += "-"

    def pattern(self, made: str | Automaton) -> str:
        self._patterns.append(made)
        return f"^{_PATTERN}{len(self._patterns) - 1}$"

    def value(self, value: Any) -> Any:
        """A value that is written out, with texts for the numbers in it that would not be written as they are."""
        if isinstance(value, dict):
            return {name: self.value(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.value(part) for part in value]
        if not isinstance(value, float) or value.is_integer():
            return value
        self._numbers.append(json.dumps(value))
        return f"{self._number}{len(self._numbers) - 1}"

    def put_into(self, ebnf: str) -> str:
        """The grammar that xgrammar made of the schema, with what stands for others replaced by that."""
        # It writes `é` as `\xe9`, and would read all hexadecimal digits behind that as its own.
        made = _ESCAPED.sub(lambda found: f"\\u00{found[1]}" if found[1] else found[0], ebnf)
        for written, meant in () if self.shared else _STRINGS:
            made = made.replace(written, meant)
        made = re.sub(rf'\\"{self._number}([0-9]+)\\"', lambda found: self._numbers[int(found[1])], made)
        made = _PLACE.sub(lambda found: self._begun(int(found[1])), made)
        if _LEFT.search(made):  # an xgrammar that writes grammars otherwise: a name must not be taken for the pattern
            raise BadGrammar("its patterns cannot be put into the grammar that this version of xgrammar writes")
        rules = [pattern.rules(_named(number), in_json_rule) for number, pattern in enumerate(self._patterns)
                 if isinstance(pattern, Automaton)]  # fmt: skip
        return "\n".join([made, *rules])

    def _begun(self, number: int) -> str:
        pattern = self._patterns[number]
        return f"{_named(number)}0" if isinstance(pattern, Automaton) else regex_rule(pattern)


def _named(number: int) -> str:
    return f"twinline_pattern_{number}_"
