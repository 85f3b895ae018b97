"""A call as DeepSeek's models write it, between marks that are tokens of their own.

Owns the marks and what stands between them. V3 and R1 write the word `function`, then name and a fenced block; V3.1
writes the name, then the arguments. Both are read, whichever the model is said to speak. Sources: the chat templates of
DeepSeek-R1 and DeepSeek-V3.1; the model card of V3.1.
"""

from __future__ import annotations

import re
from collections.abc import Set

from twinline.gateway.text.calls.call import LONGEST_HEAD, Reading
from twinline.gateway.text.calls.values import ValueScan
from twinline.gateway.text.partial import open_end

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
FENCE = "```"
_BEFORE_ARGUMENTS = re.compile(r"\s*(?:(?P<name>[^\s`]+)\s*)?(?:```(?:json)?\s*)?")


class DeepSeekCall:
    """See `Call`."""

    __slots__ = ("_begun", "_kind", "_names", "_scan", "_text", "arguments", "name", "rest")

    def __init__(self, names: Set[str], mark: str) -> None:
        """`mark` is the opening that was read: of the section, or of the call itself."""
        self._names = names
        self._begun = mark == CALL_BEGIN
        self._kind: str | None = None  # what stands before the separator: a kind (V3) or the name (V3.1)
        self._scan: ValueScan | None = None
        self._text = ""
        self.name: str | None = None
        self.arguments = ""
        self.rest = ""

    def push(self, text: str) -> Reading:
        """The head is read character by character, so that no limit depends on how the text is cut."""
        at = 0
        while self._scan is None and at < len(text):
            self._text += text[at]
            at += 1
            if not self._head() or (self._scan is None and len(self._text) > LONGEST_HEAD):
                self.rest = self._text + text[at:]
                return Reading.FAILED
        if self._scan is None:
            return Reading.OPEN
        self._text += text[at:]
        taken, ended = self._scan.push(self._text)
        self.arguments += self._text[:taken]
        self._text = self._text[taken:]
        if not ended:
            return Reading.OPEN
        self.rest = self._text
        return Reading.DONE

    def finish(self) -> str:
        return self._text if self._scan is not None else ""

    def _head(self) -> bool:
        """Goes on as far as the text allows; False if this is no call."""
        if not self._begun:
            text = self._text.lstrip()
            if not text.startswith(CALL_BEGIN):
                return CALL_BEGIN.startswith(text)
            self._begun = True
            self._text = text[len(CALL_BEGIN) :]
        if self._kind is None:
            at = self._text.find(SEPARATOR)
            if at < 0:
                return "<" not in self._text[: len(self._text) - open_end(self._text, (SEPARATOR,))]
            if "<" in self._text[:at]:
                return False
            self._kind = self._text[:at].strip()
            self._text = self._text[at + len(SEPARATOR) :]
        at = self._text.find("{")
        if at < 0:
            return "<" not in self._text
        found = _BEFORE_ARGUMENTS.fullmatch(self._text[:at])
        name = None if found is None else found["name"] or self._kind
        if name not in self._names:
            return False
        self.name = name
        self._text = self._text[at:]
        self._scan = ValueScan((FENCE, CALL_END))
        return True
