"""A call as GLM-4 and GLM-4-0414 write it: the function's name on a line, then a JSON object.

Owns the line and the object behind it. No mark begins the first call of an answer: the name alone tells. Sources: the
chat templates of glm-4-9b-chat and GLM-4-32B-0414, and the latter's model card, which takes answers apart at
`<|assistant|>`.
"""

from __future__ import annotations

from collections.abc import Set

from twinline.gateway.text.calls.call import LONGEST_HEAD, Reading
from twinline.gateway.text.calls.values import ValueScan


def may_begin(text: str, names: Set[str]) -> bool:
    """Whether an answer that begins with `text` may be a call."""
    return any(name.startswith(text[0]) for name in names)


class LineCall:
    """See `Call`."""

    __slots__ = ("_closers", "_names", "_scan", "_text", "arguments", "name", "rest")

    def __init__(self, names: Set[str], closers: tuple[str, ...]) -> None:
        self._names = names
        self._closers = closers
        self._scan: ValueScan | None = None
        self._text = ""
        self.name: str | None = None
        self.arguments = ""
        self.rest = ""

    def push(self, text: str) -> Reading:
        self._text += text
        if self._scan is None and (reading := self._head()) is not None:
            self.rest = self._text
            return reading
        assert self._scan is not None
        taken, ended = self._scan.push(self._text)
        self.arguments += self._text[:taken]
        self._text = self._text[taken:]
        if not ended:
            return Reading.OPEN
        self.rest = self._text
        return Reading.DONE

    def finish(self) -> str:
        return self._text if self._scan is not None else ""

    def _head(self) -> Reading | None:
        """None where it has come whole."""
        text = self._text.lstrip()
        for name in self._names:
            behind = text[len(name) :]
            spaces = behind[: len(behind) - len(behind.lstrip())]
            if text.startswith(name) and "\n" in spaces and behind[len(spaces) :].startswith("{"):
                begun = len(self._text) - len(behind) + len(spaces)
                if begun >= LONGEST_HEAD:
                    return Reading.FAILED
                self.name = name
                self._text = self._text[begun:]
                self._scan = ValueScan(self._closers)
                return None
        possible = any(name.startswith(text) or not text.removeprefix(name).strip() for name in self._names)
        return Reading.OPEN if possible and len(self._text) <= LONGEST_HEAD else Reading.FAILED
