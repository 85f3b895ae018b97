"""Which parts of a model's answer are calls of tools and which are its content, while the answer comes.

Owns the text that may still become a call. Must not know a format's syntax, tokens or lines: how the text was cut makes
no difference, so an answer that goes on elsewhere gives the same calls.

What is no call is content, marks and all: a name that the request does not have, a head that does not fit. A call that
was given out stays one: if its arguments are cut off or broken, they are the model's own. White space beside a call is
not content.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from twinline.gateway.text.calls.call import Call, Reading
from twinline.gateway.text.calls.format import CallFormat, Functions
from twinline.gateway.text.partial import open_end

CallDelta = dict[str, Any]


class CallParser:
    """The content and the calls in the text pushed so far; the deltas are OpenAI's, the name before the arguments."""

    __slots__ = ("_call", "_format", "_fresh", "_functions", "_held", "_opened", "_opener", "_raw",
                 "_series", "_spaces", "_tails", "count", "only_one")  # fmt: skip

    def __init__(self, format_: CallFormat, functions: Functions, only_one: bool = False) -> None:
        """`functions`: what may be called; `only_one`: nothing is read behind the first call."""
        self._format = format_
        self._functions = functions
        self.only_one = only_one
        self._opener = re.compile("|".join(map(re.escape, format_.openers)))
        self._series = secrets.token_hex(10)
        self._held = ""  # may become an opener or a tail
        self._spaces: list[str] = []  # white space that is content unless a call follows
        self._raw: list[str] = []  # of a call that is not certain yet
        self._call: Call | None = None
        self._opened = False  # the call was given out
        self._fresh = True  # nothing but white space came yet
        self._tails: tuple[str, ...] | None = None  # that may still follow the last call
        self.count = 0  # calls that have ended

    @property
    def full(self) -> bool:
        """Nothing more is read."""
        return self.only_one and self.count > 0

    @property
    def called(self) -> bool:
        """There are calls, and none is unfinished."""
        return self.count > 0 and not self._opened

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """The content and the calls' deltas that are certain now."""
        content: list[str] = []
        deltas: list[CallDelta] = []
        self._held += text
        while self._held and not self.full:
            if self._call is not None:
                self._read(content, deltas)
            elif self._tails is not None:
                if not self._skip_tails():
                    break
            elif not self._look(content):
                break
        return "".join(content), deltas

    def finish(self) -> tuple[str, list[CallDelta]]:
        """What was held back for a mark that did not come."""
        if self.full:
            return "", []
        if self._call is not None:
            if self._opened:
                rest = self._call.finish()
                return "", [self._fragment(rest)] if rest else []
            return "".join((*self._spaces, *self._raw)), []
        if self._tails is not None:
            return "", []
        return "".join((*self._spaces, self._held)), []

    def _look(self, content: list[str]) -> bool:
        """Content up to the next opener; False when more text is needed."""
        text = self._held
        if self._fresh and self._format.bare:
            bare = text.lstrip()
            if bare and self._format.begins(bare, self._functions.keys()):
                self._space(text[: len(text) - len(bare)])
                self._begin("", bare)
                return True
        found = self._opener.search(text)
        end = len(text) - open_end(text, self._format.openers) if found is None else found.start()
        words = text[:end].rstrip()
        if words:
            content += [*self._spaces, words]
            self._spaces.clear()
            self._fresh = False
        self._space(text[len(words) : end])
        if found is None:
            self._held = text[end:]
            return False
        self._begin(found[0], text[found.end() :])
        return True

    def _space(self, text: str) -> None:
        if text:
            self._spaces.append(text)

    def _begin(self, opener: str, held: str) -> None:
        self._call = self._format.read(self._functions, opener)
        self._raw = [opener]
        self._held = held
        self._opened = self._fresh = False
        self._tails = None

    def _read(self, content: list[str], deltas: list[CallDelta]) -> None:
        call = self._call
        assert call is not None
        text, self._held = self._held, ""
        reading = call.push(text)
        if not self._opened:
            self._raw.append(text)
            if call.name is not None:
                self._opened = True
                self._spaces.clear()
                self._raw.clear()
                function = {"name": call.name, "arguments": ""}
                name = f"call_{self._series}{self.count}"
                deltas.append({"index": self.count, "id": name, "type": "function", "function": function})
        if call.arguments:
            deltas.append(self._fragment(call.arguments))
            call.arguments = ""
        if reading is Reading.OPEN:
            return
        self._held = call.rest
        self._call = None
        if reading is Reading.DONE:
            self.count += 1
            self._opened = False
            self._tails = self._format.tails
            return
        raw = "".join(self._raw)
        raw = raw[: len(raw) - len(call.rest)]
        if raw:
            content += [*self._spaces, raw]
            self._spaces.clear()

    def _skip_tails(self) -> bool:
        """Passes over what belongs to the last call; False when more text is needed."""
        assert self._tails is not None
        text = self._held = self._held.lstrip()
        if not text:
            return False
        for number, tail in enumerate(self._tails):
            if text.startswith(tail):
                self._held = text[len(tail) :]
                self._tails = self._tails[number + 1 :]
                return True
        may_repeat = self._format.repeats and (self._tails or self._format.bare)
        if may_repeat and self._format.begins(text, self._functions.keys()):
            self._begin("", text)
            return True
        if any(tail.startswith(text) for tail in self._tails):
            return False
        self._tails = None
        return True

    def _fragment(self, arguments: str) -> CallDelta:
        return {"index": self.count, "function": {"arguments": arguments}}
