"""Which part of a model's text is its reasoning and which its answer, for models that write `<think>` ... `</think>`.

Owns the tags and the newlines around them. Must not know any model's name: whether reasoning is already open is read
from the end of the rendered prompt (R1's template ends in `<think>`, so only `</think>` comes: vllm#13125; V3.1 has a
switch; some outputs have no tag at all: sglang#4539).
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal

from twinline.gateway.text.partial import open_end

Kind = Literal["reasoning", "content"]
Part = tuple[Kind, str]

OPEN, CLOSE = "<think>", "</think>"


def around_answer(rendered_prompt: str) -> tuple[str, str]:
    """What comes before the answer proper, for a grammar: the text that it follows, and the token with which the output
    must open for that; both empty where the answer comes at once. See `lines.protocol.Grammar`."""
    end = rendered_prompt.rstrip()
    if end.endswith(OPEN):
        return CLOSE, ""
    return ("", "") if end.endswith(CLOSE) else (CLOSE, OPEN)


class _At(Enum):
    START = auto()  # the output may still open with its own tag
    REASONING_START = auto()  # a newline here belongs to the tag
    REASONING = auto()
    CONTENT_START = auto()  # so do newlines here
    CONTENT = auto()


_REASONING, _CONTENT = _At.REASONING, _At.CONTENT  # a member takes long to look up, and every token asks


class ReasoningParser:
    """The parts of the text pushed so far; how it was cut into chunks makes no difference.

    Dropped: the tags, white space before the output's own opening tag, a newline after it, a newline before the
    closing tag, newlines after that. Reasoning happens once, at the beginning: later tags are content.
    """

    def __init__(self, opened: bool) -> None:
        """`opened`: the prompt ends inside reasoning."""
        self._opened = opened
        self._at = _At.START
        self._held = ""

    @classmethod
    def for_prompt(cls, rendered_prompt: str) -> ReasoningParser:
        return cls(rendered_prompt.rstrip().endswith(OPEN))

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now, in order; none is empty."""
        if text and not self._held:  # nearly every token, in the middle of its part and free of a tag's beginnings
            if self._at is _CONTENT:
                return [("content", text)]
            if self._at is _REASONING and "<" not in text and "\n" not in text:
                return [("reasoning", text)]
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back for a tag that did not come."""
        parts: list[Part] = []
        if self._at is _At.START:
            self._at = _At.REASONING_START if self._opened else _At.CONTENT
            parts = self.push("")
        rest, self._held = self._held, ""
        if rest and self._at is _At.REASONING:
            parts.append(("reasoning", rest))
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Goes on as far as the held text allows without changing place; True if the place changed."""
        before = self._at
        if self._at is _At.START:
            self._start()
        elif self._at is _At.REASONING_START and self._held:
            self._held = self._held.removeprefix("\n")
            self._at = _At.REASONING
        elif self._at is _At.REASONING:
            self._reason(parts)
        elif self._at is _At.CONTENT_START:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._at = _At.CONTENT
        elif self._at is _At.CONTENT and self._held:
            parts.append(("content", self._held))
            self._held = ""
        return self._at is not before

    def _start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held = text[len(OPEN) :]
            self._at = _At.REASONING_START
        elif not OPEN.startswith(text):
            self._at = _At.REASONING_START if self._opened else _At.CONTENT

    def _reason(self, parts: list[Part]) -> None:
        end = self._held.find(CLOSE)
        if end >= 0:
            text, self._held = self._held[:end].removesuffix("\n"), self._held[end + len(CLOSE) :]
            self._at = _At.CONTENT_START
        else:
            ready = len(self._held) - open_end(self._held, ("\n" + CLOSE, CLOSE))
            text, self._held = self._held[:ready], self._held[ready:]
        if text:
            parts.append(("reasoning", text))
