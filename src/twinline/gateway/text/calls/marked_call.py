"""A call whose arguments stand one by one between marks, each as bare text.

Owns reading them and making one JSON object of them as they come: a text goes out piece by piece, any other value when
it is whole. Must not know the marks themselves (`marked_formats.py` does), nor types but from the function's schema or
from the mark.

A value may hold its own closing mark: it ends at the first behind which the call goes on or ends. Where `Marks.implied`
says so it ends without one too, before the call's end or before another parameter that the function has and the call
has not: models leave the mark out. A parameter that comes twice is written twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from twinline.gateway.text.calls.call import LONGEST_HEAD, Reading
from twinline.gateway.text.calls.format import Functions
from twinline.gateway.text.calls.typed import (
    ANY,
    NO_TEXT,
    NULLABLE,
    TEXT,
    Kinds,
    Said,
    as_json,
    declared,
    may_be_other,
    said_of,
)
from twinline.gateway.text.partial import open_end


@dataclass(frozen=True, slots=True)
class Marks:
    """`begins` comes before the name and `named` behind it. `parameter` begins a head, which `head` matches whole, with
    the groups `key` and, where the mark tells it, `string`. `value_ends` ends a value, one of `ends` the call.

    `lines`: one line break on each side of a value is not its own. `untyped`: what a value may be of which the schema
    says nothing. `implied`: what follows the first of `ends` where a value ends without its mark; empty where none
    does.
    """

    begins: str
    named: str
    parameter: str
    head: re.Pattern[str]
    value_ends: str
    ends: tuple[str, ...]
    lines: bool = False
    untyped: Kinds = ANY
    implied: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that may end a value, the longer of two first."""
        stops = [self.value_ends, *([self.ends[0]] if self.implied else [])]
        if self.lines:
            stops = [f"\n{stop}" for stop in stops] + stops
        return (*stops, *([f"\n{self.parameter}"] if self.implied else []))


class MarkedCall:
    """See `Call`."""

    __slots__ = ("_begun", "_declared", "_functions", "_given", "_held", "_line", "_marks", "_said", "_schema",
                 "_state", "_stop", "_text", "_told", "arguments", "name", "rest")  # fmt: skip

    def __init__(self, marks: Marks, functions: Functions, opener: str) -> None:
        self._marks = marks
        self._functions = functions
        self._begun = opener == marks.begins
        self._state: Callable[[], Reading | None] = self._head
        self._stop = re.compile("|".join(map(re.escape, marks.stops)))
        self._schema: object = None  # of the function's parameters
        self._declared: dict[str, object] = {}
        self._given: set[str] = set()
        self._said = Said(TEXT)  # of the value that is being read
        self._told = False  # it is a text, and goes out as it comes
        self._held: list[str] = []  # of a value that waits for its end
        self._line = False  # a line break here is not the value's
        self._text = ""
        self.name: str | None = None
        self.arguments = ""
        self.rest = ""

    def push(self, text: str) -> Reading:
        """Limits count from where a head begins, so that none depends on how the text is cut."""
        self._text += text
        reading = self._state()
        while reading is None:
            reading = self._state()
        if reading is not Reading.OPEN:
            self.rest = self._text
        return reading

    def finish(self) -> str:
        """The beginning of a value, as far as it came; all of it where nothing but the call's end was missing."""
        if self.name is None or self._state != self._value:
            return ""
        ended = re.search(rf"\n?{re.escape(self._marks.value_ends)}\s*\Z", self._text)
        text = self._text if ended is None else self._text[: ended.start()]
        if self._told:
            return _inside(text) + ('"' if ended else "")
        whole = "".join(self._held) + text
        return as_json(whole, self._said) if ended else whole

    # Each state goes on (None) or says how far the call is.

    def _head(self) -> Reading | None:
        """The name is certain with the first mark behind it."""
        marks, text = self._marks, self._text.lstrip()
        if not self._begun:
            if not text.startswith(marks.begins):
                return self._wait(marks.begins.startswith(text))
            text = text[len(marks.begins) :]
        for name in self._functions:
            behind = text[len(name) + len(marks.named) :].lstrip()
            if text.startswith(name + marks.named) and (mark := self._next(behind)):
                if len(self._text) - len(behind) + len(mark) > LONGEST_HEAD:
                    return Reading.FAILED
                self.name = name
                self.arguments = "{"
                self._schema = self._functions[name]
                self._declared = declared(self._schema)
                self._text = behind
                self._state = self._between
                return None
        return self._wait(self._may_be_named(text))

    def _may_be_named(self, text: str) -> bool:
        for name in self._functions:
            named = name + self._marks.named
            if named.startswith(text):
                return True
            if text.startswith(named) and self._may_be_next(text[len(named) :].lstrip()):
                return True
        return False

    def _between(self) -> Reading | None:
        """Where a parameter begins or the call ends; anything else ends it too, and stands behind it."""
        marks, text = self._marks, self._text.lstrip()
        self._text = text
        mark = self._next(text)
        if mark == marks.parameter:
            found = marks.head.match(text)
            if found is None or found.end() > LONGEST_HEAD:
                return Reading.OPEN if len(text) <= LONGEST_HEAD else self._closed("")
            self._begin(found.groupdict())
            self._text = text[found.end() :]
            return None
        if mark:
            return self._closed(mark)
        return Reading.OPEN if self._may_be_next(text) else self._closed("")

    def _begin(self, groups: Mapping[str, str | None]) -> None:
        key = (groups["key"] or "").strip()
        said = said_of(self._declared.get(key), self._schema)
        kinds = said.kinds or self._marks.untyped
        if (string := groups.get("string")) is not None:
            kinds = TEXT if string == "true" else kinds - TEXT or NO_TEXT
        self._said = replace(said, kinds=kinds)
        self.arguments += (", " if self._given else "") + json.dumps(key, ensure_ascii=False) + ": "
        self._given.add(key)
        self._told = not may_be_other("", self._said)
        if self._told:
            self.arguments += '"'
        self._line = self._marks.lines
        self._state = self._value

    def _value(self) -> Reading | None:
        if self._line and self._text:
            self._text = self._text.removeprefix("\n")
            self._line = False
        text, at = self._text, 0
        while found := self._stop.search(text, at):
            resume = self._ended(text, found)
            if resume is None:
                return self._waits(found.start())
            if resume >= 0:
                self._take(text[: found.start()])
                self.arguments += '"' if self._told else as_json("".join(self._held), self._said)
                self._held.clear()
                self._text = text[resume:]
                self._state = self._between
                return None
            at = found.end()
        return self._waits(len(text) - open_end(text[at:], self._marks.stops))

    def _ended(self, text: str, found: re.Match[str]) -> int | None:
        """Where the call goes on if the value ends here, -1 if it does not, None if more text has to tell."""
        marks, mark, end = self._marks, found[0].removeprefix("\n"), found.end()
        if mark == marks.parameter:  # a head where none can be: the mark before it was left out
            head = marks.head.match(text, end - len(mark))
            if head is not None:
                return head.start() if head["key"] in self._declared and head["key"] not in self._given else -1
            begun = text[end : end + LONGEST_HEAD]
            likely = any(f"{key}>".startswith(begun) for key in self._declared if key not in self._given)
            return None if likely and len(begun) < LONGEST_HEAD else -1
        near = text[end : end + 2 * LONGEST_HEAD]
        behind = near.lstrip()
        endless = len(near) - len(behind) > LONGEST_HEAD
        if mark == marks.value_ends:
            if endless or self._next(behind):
                return end
            return None if self._may_be_next(behind) else -1
        if behind.startswith(marks.implied) and not endless:
            return end - len(mark)
        return None if marks.implied.startswith(behind) and not endless else -1

    # What the states share.

    def _next(self, text: str) -> str:
        """The mark with which the call goes on or ends, if one stands here."""
        marks = self._marks
        return next((mark for mark in (marks.parameter, *marks.ends) if text.startswith(mark)), "")

    def _may_be_next(self, text: str) -> bool:
        marks = self._marks
        return any(mark.startswith(text) for mark in (marks.parameter, *marks.ends))

    def _take(self, text: str) -> None:
        """A part of the value."""
        if self._told:
            self.arguments += _inside(text)
            return
        self._held.append(text)
        if self._said.kinds == NULLABLE and self._said.free:
            whole = "".join(self._held)
            if not may_be_other(whole, self._said):
                self._told = True
                self._held.clear()
                self.arguments += '"' + _inside(whole)

    def _waits(self, certain: int) -> Reading:
        """For the value's end; what cannot be a part of that is the value's."""
        self._take(self._text[:certain])
        self._text = self._text[certain:]
        return Reading.OPEN

    def _wait(self, possible: bool) -> Reading:
        return Reading.OPEN if possible and len(self._text) <= LONGEST_HEAD else Reading.FAILED

    def _closed(self, mark: str) -> Reading:
        self.arguments += "}"
        self._text = self._text[len(mark) :]
        return Reading.DONE


def _inside(text: str) -> str:
    """As it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
