"""An answer that comes as text, from a line without token ids: its pieces, and whether its text can be continued.

Owns the held white space. Must not know token ids, nor which line spoke.

Chat templates trim the end of a message, so what was shown must not end in white space if another line is to go on
after it: such an end waits for the next visible character (gateways.md 7.2). Text goes on from content alone, never
inside reasoning, and never after a tool call.
"""

from __future__ import annotations

import msgspec

from twinline.gateway.text.reasoning import Part
from twinline.lines.protocol import TextSource
from twinline.lines.wire import Delta


def said(source: TextSource, spoken: Spoken | None) -> TextSource:
    """The request as its client wrote it, and what was said since, if it goes on after that."""
    if spoken is None:
        return source
    return msgspec.structs.replace(source, shown=spoken.content, shown_tokens=spoken.deltas)


class Spoken:
    """One choice's text so far. `deltas` counts what came, which is about its tokens."""

    __slots__ = ("_content", "_held", "called", "deltas")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._held = ""
        self.called = False
        self.deltas = 0

    @property
    def content(self) -> str:
        """What was shown of the answer itself."""
        return "".join(self._content)

    @property
    def resumable(self) -> bool:
        return bool(self._content) and not self.called

    def push(self, delta: Delta) -> list[Part]:
        """The parts that may be shown now."""
        parts: list[Part] = []
        self.deltas += 1
        self.called = self.called or bool(delta.tool_calls)
        if delta.reasoning:
            parts.append(("reasoning", delta.reasoning))
        text = self._held + delta.text
        kept = text if delta.finish_reason is not None or self.called else text.rstrip()  # none goes on after a call
        self._held = text[len(kept) :]
        if kept:
            parts.append(("content", kept))
            self._content.append(kept)
        return parts

    def cut(self) -> None:
        """Forgets what was not shown."""
        self._held = ""
