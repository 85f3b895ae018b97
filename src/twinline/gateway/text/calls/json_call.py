"""A call written as one JSON object with a name and arguments, as Hermes, Qwen and Llama 3 do.

Owns the object's own members. Must not know what stands around it. `parameters` is Llama's word for arguments; Hermes 2
writes the arguments before the name, so they wait for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence, Set

from twinline.gateway.text.calls.call import LONGEST_HEAD, Reading
from twinline.gateway.text.calls.values import ValueScan

_KEY = re.compile(r'\s*"(\w{1,32})"\s*:\s*(?=\S)')
_KEY_BEGUN = re.compile(r'\s*(?:"(?:\w{0,32}(?:"\s*(?::\s*)?)?)?)?')
_END = re.compile(r"\s*\}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ARGUMENTS = frozenset({"arguments", "parameters"})
_LABELS = frozenset({"name", "type", "id"})
_NULL = "null"


class JsonCall:
    """See `Call`. Arguments in a string are taken out of it, null and none at all are `{}`, other kinds are no call."""

    __slots__ = ("_closers", "_held", "_key", "_label", "_names", "_scan", "_state", "_text", "_whole", "arguments",
                 "name", "rest")  # fmt: skip

    def __init__(self, names: Set[str], closers: Sequence[str] = ()) -> None:
        self._names = names
        self._closers = tuple(closers)
        self._text = ""
        self._state: Callable[[], Reading | None] = self._open
        self._key = ""
        self._label: str | None = None  # the name, before it is certain that there is a call
        self._scan: ValueScan | None = None
        self._held: list[str] = []  # of arguments that wait for the name or for their end
        self._whole: str | None = None  # arguments that have come whole and wait for the name
        self.name: str | None = None
        self.arguments = ""
        self.rest = ""

    def push(self, text: str) -> Reading:
        """All but the arguments is read character by character, so that no limit depends on how the text is cut."""
        at = 0
        while at < len(text):
            if self._scan is not None:
                self._text += text[at:]
                at = len(text)
                reading = self._scanned()
                if reading is None:
                    text, at, self._text = self._text, 0, ""
            else:
                self._text += text[at]
                at += 1
                reading = self._step()
            if reading is Reading.DONE or reading is Reading.FAILED:
                self.rest += text[at:]
                return reading
        return Reading.OPEN

    def _step(self) -> Reading | None:
        reading = None
        while reading is None and self._scan is None:
            reading = self._state()
        return reading

    def finish(self) -> str:
        return self._text if self.name is not None and self._scan is not None else ""

    # Each state goes on (None) or says how far the call is.

    def _open(self) -> Reading | None:
        text = self._text.lstrip()
        if not text:
            return self._wait()
        if text[0] != "{":
            return self._broken()
        self._text = text[1:]
        self._state = self._member
        return None

    def _member(self) -> Reading | None:
        found = _KEY.match(self._text)
        if found is None:
            if end := _END.match(self._text):
                return self._closed(end.end())
            return self._wait() if _KEY_BEGUN.fullmatch(self._text) else self._broken()
        self._key = found[1]
        if self._key in _LABELS:
            self._state = self._text_value
        elif self._key in _ARGUMENTS and self.name is None and self._whole is None:
            self._state = self._arguments
        else:
            return self._broken()
        self._text = self._text[found.end() :]
        return None

    def _text_value(self) -> Reading | None:
        found = _STRING.match(self._text)
        if found is None:
            return self._wait() if self._text.startswith('"') else self._broken()
        if self._key == "name" and self.name is None:
            try:
                label = json.loads(found[0], strict=False)
            except ValueError:
                return self._broken()
            if label not in self._names:
                return self._broken()
            self._label = label
        self._text = self._text[found.end() :]
        self._state = self._next
        return None

    def _arguments(self) -> Reading | None:
        text = self._text
        if text[0] == "n":
            if len(text) < len(_NULL):
                return Reading.OPEN if _NULL.startswith(text) else self._broken()
            if not text.startswith(_NULL):
                return self._broken()
            self._whole = "{}"
            self._text = text[len(_NULL) :]
            self._state = self._next
            return None
        if text[0] not in '{"':
            return self._broken()
        self._scan = ValueScan(self._closers)
        if text[0] == "{" and self._label is not None:
            self.name = self._label
        self._state = self._scanned
        return None

    def _scanned(self) -> Reading | None:
        assert self._scan is not None
        taken, ended = self._scan.push(self._text)
        part, self._text = self._text[:taken], self._text[taken:]
        if self.name is not None:
            self.arguments += part
        else:
            self._held.append(part)
        if not ended:
            return Reading.OPEN
        self._scan = None
        if self.name is None:
            self._whole = _object("".join(self._held))
            self._held.clear()
            if self._whole is None:
                return self._broken()
        self._state = self._next
        return None

    def _next(self) -> Reading | None:
        text = self._text.lstrip()
        if not text:
            return self._wait()
        if text[0] == ",":
            self._text = text[1:]
            self._state = self._member
            return None
        if text[0] == "}":
            self._text = text
            return self._closed(1)
        return self._broken()

    # How it ends.

    def _wait(self) -> Reading:
        return Reading.OPEN if len(self._text) <= LONGEST_HEAD else self._broken()

    def _closed(self, end: int) -> Reading:
        if self.name is None:
            if self._label is None:
                return self._broken()
            self.name = self._label
            self.arguments = "{}" if self._whole is None else self._whole
        self.rest = self._text[end:]
        return Reading.DONE

    def _broken(self) -> Reading:
        """The object does not go on as it should: it is done if it has said all, else it is no call."""
        self.rest = self._text
        if self.name is None and self._label is not None and self._whole is not None:
            self.name, self.arguments = self._label, self._whole
        return Reading.FAILED if self.name is None else Reading.DONE


def _object(value: str) -> str | None:
    """The text of a whole object, out of its string if it is in one; None for anything else."""
    if value.startswith("{"):
        return value if value.endswith("}") else None
    try:
        inner = json.loads(value, strict=False)
    except ValueError:
        return None
    inner = inner.strip()
    return inner if inner.startswith("{") and inner.endswith("}") else None
