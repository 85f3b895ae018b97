"""The one path from a token request to text: deltas -> text -> stop strings -> reasoning -> pieces.

Owns a choice's journal (every token id the line gave), its text and its end. Must not know how an endpoint shapes its
answer. A stream could go on from `prompt + journal` on another line; nothing here depends on which line gave a token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from twinline.gateway.errors import deadline_passed, from_line
from twinline.gateway.metrics import ModelMeter
from twinline.gateway.served import ServedModel
from twinline.gateway.text.detokenize import Detokenizer
from twinline.gateway.text.reasoning import Part, ReasoningParser
from twinline.gateway.text.stops import StopMatcher
from twinline.lines.protocol import Delta, LineBroken, LineError, TokenRequest
from twinline.lines.wire import TokenLogprob

AT_ONCE = 64  # line requests that one HTTP request has under way
_QUEUED = 64  # pieces that wait for a slow client before the lines are made to wait


class Piece(msgspec.Struct, frozen=True):
    """What one delta meant for one choice. `parts` are (kind, text), none empty; `finish` is set in the last piece."""

    index: int
    parts: list[Part]
    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class TextRules:
    """How a choice's tokens become its text: what ends it, and what of it is shown."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True


class Generation:
    """One choice. Iterate `pieces` once; `journal` and `cached_tokens` tell how far it came."""

    def __init__(
        self,
        served: ServedModel,
        request: TokenRequest,
        index: int,
        rules: TextRules,
        reasoning: ReasoningParser | None,
        meter: ModelMeter,
    ) -> None:
        self.request = request
        self.index = index
        self.journal: list[int] = []
        self.cached_tokens: int | None = None
        self._line = served.line
        # A message opens a text of its own; a completion, which has no reasoning to part, goes on from its prompt.
        self._detokenizer = Detokenizer(served.tokenizer, rules.skip_special, opening=reasoning is not None)
        self._stops = StopMatcher(rules.stops, rules.include_stop) if rules.stops else None
        self._include_stop = rules.include_stop
        self._reasoning = reasoning
        self._meter = meter
        self._last_arrival = 0.0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Raises ApiError. Closing it, as a matched stop string does, closes the line's stream."""
        self._last_arrival = time.monotonic()
        finished = False
        try:
            async with aclosing(self._line.stream(self.request)) as deltas:
                async for delta in deltas:
                    if delta.usage is not None:
                        self.cached_tokens = delta.usage.cached_tokens
                    if finished or not (delta.tokens or delta.finish_reason or delta.prompt_logprobs):
                        continue
                    self._measure(len(delta.tokens))
                    piece = self._piece(delta)
                    finished = piece.finish is not None
                    yield piece
                    if finished and delta.finish_reason is None:
                        break  # a stop string: the line need not go on
        except LineError as error:
            raise from_line(error) from error
        finally:
            self._count()

    def _piece(self, delta: Delta) -> Piece:
        if delta.finish_reason in ("abort", "error"):
            raise from_line(LineBroken(f"it finished with {delta.finish_reason}"))
        if delta.finish_reason == "deadline":
            raise deadline_passed()
        tokens = delta.tokens
        text, used, matched = self._text(tokens, delta)
        logprobs = delta.logprobs
        if used < len(tokens):
            tokens = tokens[:used]
            logprobs = None if logprobs is None else logprobs[:used]
        self.journal += tokens
        finish, reason = ("stop", matched) if matched is not None else (delta.finish_reason, delta.stop_reason)
        parts: list[Part] = [("content", text)] if text else []
        if self._reasoning is not None:
            parts = self._reasoning.push(text) if text else []
            if finish is not None:
                parts += self._reasoning.finish()
        return Piece(self.index, parts, tokens, logprobs, delta.prompt_logprobs, finish, reason)

    def _text(self, tokens: list[int], delta: Delta) -> tuple[str, int, str | None]:
        """The text that may be sent, how many of `tokens` it took, and the stop string that was matched."""
        shown = tokens
        stopped = delta.finish_reason == "stop" and bool(tokens) and tokens[-1] == delta.stop_reason
        if stopped and not self._include_stop:
            shown = tokens[:-1]  # the stop token has no text, also when it is not a special one
        if self._stops is None:
            text = self._detokenizer.push(shown)
            return (text + self._detokenizer.finish() if delta.finish_reason else text), len(tokens), None
        sent = []
        exempt = self.request.min_tokens - len(self.journal)
        for used, token in enumerate(shown, 1):
            text = self._detokenizer.push((token,))
            matched = None
            if used > exempt:  # as in vLLM, no stop string begins in the first min_tokens tokens
                text, matched = self._stops.push(text)
            sent.append(text)
            if matched is not None:
                return "".join(sent), used, matched
        if delta.finish_reason:
            text, matched = self._stops.push(self._detokenizer.finish())
            sent += [text, self._stops.finish()]
            return "".join(sent), len(tokens), matched
        return "".join(sent), len(tokens), None

    def _measure(self, tokens: int) -> None:
        now = time.monotonic()
        if not tokens:
            return
        if self.journal:
            self._meter.between_tokens((now - self._last_arrival) / tokens)
        else:
            self._meter.first_token(now - self._last_arrival)
        self._last_arrival = now

    def _count(self) -> None:
        if self.journal:
            self._meter.prompt_tokens(len(self.request.prompt))
            self._meter.completion_tokens(len(self.journal))
            self._meter.cached_tokens(self.cached_tokens or 0)


async def together(generations: Sequence[Generation]) -> AsyncGenerator[Piece, None]:
    """The pieces of all choices as they come. Raises the first ApiError; closing it closes every line stream."""
    if len(generations) == 1:
        async with aclosing(generations[0].pieces()) as pieces:
            async for piece in pieces:
                yield piece
        return
    queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue(_QUEUED)
    slots = asyncio.Semaphore(AT_ONCE)

    async def pump(generation: Generation) -> None:
        try:
            async with slots, aclosing(generation.pieces()) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    # Not a TaskGroup: it would cancel whoever is sending our last piece when a choice fails.
    tasks = [asyncio.create_task(pump(generation)) for generation in generations]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
