"""One choice's tokens as they become text: deltas -> text -> stop strings -> reasoning -> tool calls -> pieces.

Owns the journal: the token ids whose text has been given out, up to the last whole character. Must not know lines: the
same tokens give the same pieces whichever line they came from and however they were cut. So an answer goes on elsewhere
from the journal: what came after it, the parts of a character, is dropped and made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from twinline.gateway.spoken import Spoken
from twinline.gateway.text.calls.parser import CallDelta, CallParser
from twinline.gateway.text.detokenize import Detokenizer, Vocabulary
from twinline.gateway.text.reasoning import CLOSE, Kind, Part, ReasoningParser, tokens_to
from twinline.gateway.text.stops import StopMatcher
from twinline.lines.wire import Delta, TokenLogprob


def _cannot_write(*_: object) -> bytes | None:
    return None


write_event: Callable[[list[int], dict[int, str | None], frozenset[int], bytes, bytes, bool], bytes | None]
write_event = _cannot_write
with contextlib.suppress(ImportError):
    from twinline.gateway._text_event import event as write_event
COMPILED = write_event is not _cannot_write

Around = Mapping[Kind, tuple[bytes, bytes]]  # what is before and after the text, as a JSON string, in an event of it


class Piece(msgspec.Struct, frozen=True, gc=False):
    """What one delta meant for one choice. `parts` are (kind, text), none empty; `finish` is set in the last piece.

    `tool_calls` are OpenAI's deltas; those of lines that give text only are as they came.
    """

    index: int
    parts: list[Part]
    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish: str | None = None
    stop_reason: int | str | None = None
    tool_calls: list[dict[str, object]] | None = None


@dataclass(frozen=True, slots=True)
class TextRules:
    """How a choice's tokens become its text: what ends it, and what of it is shown."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    keep: frozenset[int] = frozenset()  # special tokens shown nevertheless


class Transcript:
    """One choice. `journal` is what was given out; `tokens` counts what came, the parts of a character included."""

    __slots__ = (
        "_calls", "_detokenizer", "_include_stop", "_index", "_logprobs", "_min_tokens", "_pending", "_reasoning",
        "_stops", "_vocabulary", "journal", "shown", "spoken",
    )  # fmt: skip

    def __init__(
        self,
        vocabulary: Vocabulary,
        rules: TextRules,
        reasoning: ReasoningParser | None,
        index: int = 0,
        min_tokens: int = 0,
        calls: CallParser | None = None,
    ) -> None:
        # A message opens a text of its own; a completion, which has no reasoning to part, goes on from its prompt.
        self._detokenizer = Detokenizer(vocabulary, rules.skip_special, rules.keep, opening=reasoning is not None)
        self._stops = StopMatcher(rules.stops, rules.include_stop) if rules.stops else None
        self._include_stop = rules.include_stop
        self._reasoning = reasoning
        self._calls = calls
        self._vocabulary = vocabulary
        self._index = index
        self._min_tokens = min_tokens
        self._pending: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self.journal: list[int] = []
        self.shown = False  # some text or token was given out
        self.spoken: Spoken | None = None  # in place of all that, where a line gives text only

    @property
    def tokens(self) -> int:
        return len(self.journal) + len(self._pending)

    def reasoning_tokens(self, mark: Sequence[int]) -> int:
        """Of the journal, with the `mark` that ends reasoning: as ids, or as a text that other ids spell, too."""
        if self._reasoning is None or not self._reasoning.reasoned:
            return 0
        found = tokens_to(mark, self.journal)
        if found is None and not self._reasoning.inside:
            found = self._tokens_to_text(CLOSE)
        return len(self.journal) if found is None else found

    def _tokens_to_text(self, text: str) -> int | None:
        whole, end = Detokenizer(self._vocabulary, skip_special=False), ""
        for count, token in enumerate(self.journal, 1):
            end = end[1 - len(text) :] + whole.push((token,))
            if text in end:
                return count
        return None

    @property
    def last_token(self) -> int | None:
        source = self._pending or self.journal
        return source[-1] if source else None

    def text_of(self, tokens: Sequence[int]) -> str:
        """Any tokens as text, special ones too."""
        whole = Detokenizer(self._vocabulary, skip_special=False)
        return whole.push(tokens) + whole.finish()

    def cut(self) -> None:
        """Forgets what is behind the journal, so that another line can go on from there."""
        self._pending.clear()
        self._logprobs.clear()
        self._detokenizer.cut()
        self.spoken = None  # white space at most, which was not shown: a line of tokens may be next

    def push(self, delta: Delta) -> Piece:
        """What the delta's tokens give. After a piece with `finish` nothing may be pushed."""
        if delta.text or delta.reasoning or delta.tool_calls or self.spoken is not None:
            return self._text_only(delta)
        finish = delta.finish_reason
        plain = self._stops is None and self._calls is None
        if plain and delta.logprobs is None and not self._pending:  # nearly every token
            tokens = delta.tokens
            if finish is not None:
                text = self._detokenizer.push(self._shown(delta, finish)) + self._detokenizer.finish()
                self.journal += tokens
                self.shown = self.shown or bool(tokens)
                parts = self._parts(text, True)
                return Piece(self._index, parts, tokens, None, delta.prompt_logprobs, finish, delta.stop_reason)
            text = self._detokenizer.push(tokens)
            behind = len(self.journal) + len(tokens) - self._detokenizer.whole
            if behind:
                self._pending = tokens[len(tokens) - behind :]
                tokens = tokens[: len(tokens) - behind]
            self.journal += tokens
            parts = self._parts(text, False)
            if tokens:
                self.shown = True
            return Piece(self._index, parts, tokens, None, delta.prompt_logprobs)
        if self._calls is not None and self._calls.only_one and len(delta.tokens) > 1:
            return self._one_by_one(delta)
        return self._careful(delta, finish)

    def _one_by_one(self, delta: Delta) -> Piece:
        """So that what ends with a call ends with its last token, however many came together."""
        pieces = []
        for single in _apart(delta):
            pieces.append(self._careful(single, single.finish_reason))
            if pieces[-1].finish is not None:
                break
        return _as_one(pieces)

    def event(self, tokens: list[int], around: Around) -> bytes | None:
        """`push` of tokens that came alone, and the event of it: where they are text of one part and nothing else; else
        None, and they must be pushed."""
        if self._pending or self._stops is not None or self._calls is not None or not self._detokenizer.even:
            return None
        kind: Kind | None = "content" if self._reasoning is None else self._reasoning.even
        if kind is None or self.spoken is not None:
            return None
        before, after = around[kind]
        data = write_event(
            tokens, self._vocabulary.texts, self._detokenizer.skipped, before, after, kind == "reasoning"
        )
        if data is not None:
            self._detokenizer.past(len(tokens))
            self.journal += tokens
            self.shown = True
        return data

    def _careful(self, delta: Delta, finish: str | None) -> Piece:
        self._pending = self._pending + delta.tokens
        if delta.logprobs is not None:
            self._logprobs += delta.logprobs
        text, used, matched = self._text(delta, finish)
        ended = finish is not None or matched is not None
        pending = self._pending
        given = used if ended else self._detokenizer.whole - len(self.journal)
        tokens, self._pending = pending[:given], pending[given:]
        logprobs = None
        if delta.logprobs is not None or self._logprobs:
            logprobs, self._logprobs = self._logprobs[:given], self._logprobs[given:]
        self.journal += tokens
        if tokens:
            self.shown = True
        reason = delta.stop_reason
        if matched is not None:
            finish, reason = "stop", matched
        parts = self._parts(text, ended)
        deltas = None
        calls = self._calls
        if calls is not None:
            parts, deltas = _called(calls, parts, ended)
            if calls.full or (calls.called and finish == "stop"):
                finish = "tool_calls"
        return Piece(self._index, parts, tokens, logprobs, delta.prompt_logprobs, finish, reason, deltas)

    def _parts(self, text: str, ended: bool) -> list[Part]:
        if self._reasoning is None:
            return [("content", text)] if text else []
        parts = self._reasoning.push(text) if text else []
        if ended:
            parts += self._reasoning.finish()
        return parts

    def _text(self, delta: Delta, finish: str | None) -> tuple[str, int, str | None]:
        """The text that may be given out, how many of the pending tokens it took, and the stop that was matched."""
        fresh = self._shown(delta, finish)
        behind = len(self._pending) - len(delta.tokens)  # what was pushed before but is not whole
        if self._stops is None:
            text = self._detokenizer.push(fresh)
            return (text + self._detokenizer.finish() if finish else text), len(self._pending), None
        sent = []
        exempt = self._min_tokens - len(self.journal) - behind
        for used, token in enumerate(fresh, 1):
            text = self._detokenizer.push((token,))
            matched = None
            if used > exempt:  # as in vLLM, no stop string begins in the first min_tokens tokens
                text, matched = self._stops.push(text)
            sent.append(text)
            if matched is not None:
                return "".join(sent), behind + used, matched
        if finish:
            text, matched = self._stops.push(self._detokenizer.finish())
            sent += [text, self._stops.finish()]
            return "".join(sent), len(self._pending), matched
        return "".join(sent), len(self._pending), None

    def _shown(self, delta: Delta, finish: str | None) -> Sequence[int]:
        """Without the stop token, which has no text, also when it is not a special one."""
        fresh = delta.tokens
        if finish == "stop" and fresh and fresh[-1] == delta.stop_reason and not self._include_stop:
            return fresh[:-1]
        return fresh

    def _text_only(self, delta: Delta) -> Piece:
        spoken = self.spoken = self.spoken or Spoken()
        parts = spoken.push(delta)
        self.shown = self.shown or bool(parts) or bool(delta.tool_calls)
        return Piece(
            self._index, parts, [], None, None, delta.finish_reason, delta.stop_reason, tool_calls=delta.tool_calls
        )


def _apart(delta: Delta) -> Iterator[Delta]:
    """The same, token by token."""
    last = len(delta.tokens) - 1
    for at, token in enumerate(delta.tokens):
        yield Delta(
            [token],
            None if delta.logprobs is None else delta.logprobs[at : at + 1],
            prompt_logprobs=None if at else delta.prompt_logprobs,
            finish_reason=delta.finish_reason if at == last else None,
            stop_reason=delta.stop_reason if at == last else None,
        )


def _as_one(pieces: Sequence[Piece]) -> Piece:
    """Of what came together; the first has the prompt's part, the last how it ended."""
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    calls = [call for piece in pieces for call in piece.tool_calls or ()]
    first, last = pieces[0], pieces[-1]
    return Piece(
        first.index,
        [part for piece in pieces for part in piece.parts],
        [token for piece in pieces for token in piece.tokens],
        logprobs if any(piece.logprobs is not None for piece in pieces) else None,
        first.prompt_logprobs,
        last.finish,
        last.stop_reason,
        calls or None,
    )


def _called(calls: CallParser, parts: list[Part], ended: bool) -> tuple[list[Part], list[CallDelta] | None]:
    """The parts without the calls in their content, and those."""
    kept: list[Part] = []
    deltas: list[CallDelta] = []
    for part in parts:
        if part[0] == "content":
            content, found = calls.push(part[1])
            deltas += found
            part = ("content", content)
        if part[1]:
            kept.append(part)
    if ended:
        content, found = calls.finish()
        deltas += found
        if content:
            kept.append(("content", content))
    return kept, deltas or None
