"""Which part of a model's text is its reasoning and which its answer, for models that write `<think>` ... `</think>`.

Owns the tags and the newlines around them. Must not know any model's name: whether reasoning is already open is read
from the end of the rendered prompt (R1's template ends in `<think>`, so only `</think>` comes: vllm#13125; V3.1 has a
switch; some outputs have no tag at all: sglang#4539).

ERNIE 4.5's thinking models put the answer between `<response>` and `</response>` (the reasoning parsers of FastDeploy,
`ernie-x1`, and of vLLM, `ernie45`). Others write these words too, as any others, so they are tags only where the caller
knows that they are tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Literal

from twinline.gateway.text.partial import open_end

Kind = Literal["reasoning", "content"]
Part = tuple[Kind, str]

OPEN, CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<response>", "</response>"


def around_answer(rendered_prompt: str, continued: str = "") -> tuple[str, str]:
    """What comes before the answer proper, for a grammar: the text that it follows, and the token with which the output
    must open for that; both empty where the answer comes at once. See `lines.protocol.Grammar`. `continued` is the
    message with which the prompt ends, where the output goes on with it."""
    if _inside(rendered_prompt, continued):
        return CLOSE, ""
    return ("", "") if continued or rendered_prompt.rstrip().endswith(CLOSE) else (CLOSE, OPEN)


def _inside(rendered_prompt: str, continued: str) -> bool:
    """Whether the prompt ends inside reasoning, which happens once, at the beginning of a message."""
    if continued:
        before = rendered_prompt.rstrip().removesuffix(continued.strip()).rstrip()
        return (continued.lstrip().startswith(OPEN) or before.endswith(OPEN)) and CLOSE not in continued
    return rendered_prompt.rstrip().endswith(OPEN)


def tokens_to(mark: Sequence[int], tokens: Sequence[int]) -> int | None:
    """How many of `tokens` there are to the end of the first `mark`; None where it is not among them."""
    at = -1
    while mark:
        try:
            at = tokens.index(mark[0], at + 1)
        except ValueError:
            break
        if list(tokens[at : at + len(mark)]) == list(mark):
            return at + len(mark)
    return None


class _At(Enum):
    START = auto()  # the output may still open with its own tag
    REASONING_START = auto()  # a newline here belongs to the tag
    REASONING = auto()
    CONTENT_START = auto()  # so do newlines here
    CONTENT = auto()
    ANSWER_START = auto()  # and here
    ANSWER = auto()  # content, between tags of its own


_REASONING, _CONTENT = _At.REASONING, _At.CONTENT  # a member takes long to look up, and every token asks


class ReasoningParser:
    """The parts of the text pushed so far; how it was cut into chunks makes no difference.

    Dropped: the tags, white space before the output's own opening tag, a newline after it, a newline before the
    closing tag, newlines after that. Reasoning happens once, at the beginning: later tags are content. With
    `answer_tags` those around the answer are dropped too, with their newlines.
    """

    def __init__(self, opened: bool, answer_tags: bool = False) -> None:
        """`opened`: the prompt ends inside reasoning."""
        self._opened = opened
        self._answer_tags = answer_tags  # they have not come
        self._at = _At.START
        self._held = ""
        self.reasoned = False  # reasoning has begun

    @classmethod
    def for_prompt(cls, rendered_prompt: str, answer_tags: bool = False, continued: str = "") -> ReasoningParser:
        """`continued`: as for `around_answer`."""
        made = cls(_inside(rendered_prompt, continued), answer_tags)
        if continued.strip() not in ("", OPEN):
            made._goes_on(continued)
        return made

    def _goes_on(self, continued: str) -> None:
        """The output begins in the middle of a part, whose newlines are its own."""
        if self._opened:
            self._at, self.reasoned = _At.REASONING, True
            return
        if self._answer_tags and ANSWER_OPEN in continued and ANSWER_CLOSE not in continued:
            self._at = _At.ANSWER
        self._answer_tags = False

    @property
    def even(self) -> Kind | None:
        """In the middle of which part it is, where the next text is all of that part: unless, in reasoning, a `<` or a
        newline is in it."""
        if self._held:
            return None
        return "content" if self._at is _CONTENT else "reasoning" if self._at is _REASONING else None

    @property
    def inside(self) -> bool:
        """Reasoning has begun and has not ended."""
        return self.reasoned and self._at is _REASONING

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
            self._at = _At.REASONING_START if self._opened else self._content()
            parts = self.push("")
        rest, self._held = self._held, ""
        if rest:
            parts.append(("reasoning" if self._at is _At.REASONING else "content", rest))
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Goes on as far as the held text allows without changing place; True if the place changed."""
        before = self._at
        if self._at is _At.START:
            self._start()
        elif self._at is _At.REASONING_START and self._held:
            self.reasoned = True
            self._held = self._held.removeprefix("\n")
            self._at = _At.REASONING
        elif self._at is _At.REASONING:
            self._until(CLOSE, "reasoning", parts)
        elif self._at is _At.CONTENT_START:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._at = self._answer()
        elif self._at is _At.ANSWER_START:
            self._held = self._held.lstrip("\n")
            if self._held:
                self._at = _At.ANSWER
        elif self._at is _At.ANSWER:
            self._until(ANSWER_CLOSE, "content", parts)
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
            self._at = _At.REASONING_START if self._opened else self._content()

    def _content(self) -> _At:
        """Where an answer without reasoning begins."""
        return _At.CONTENT_START if self._answer_tags else _At.CONTENT

    def _answer(self) -> _At:
        if not self._answer_tags:
            return _At.CONTENT
        if self._held.startswith(ANSWER_OPEN):
            self._held = self._held[len(ANSWER_OPEN) :]
            self._answer_tags = False
            return _At.ANSWER_START
        return _At.CONTENT_START if ANSWER_OPEN.startswith(self._held) else _At.CONTENT

    def _until(self, close: str, kind: Kind, parts: list[Part]) -> None:
        end = self._held.find(close)
        if end >= 0:
            text, self._held = self._held[:end].removesuffix("\n"), self._held[end + len(close) :]
            self._at = _At.CONTENT_START
        else:
            ready = len(self._held) - open_end(self._held, ("\n" + close, close))
            text, self._held = self._held[:ready], self._held[ready:]
        if text:
            parts.append((kind, text))
