"""What both endpoints' answers share: the envelope, its events when streamed, and usage.

Owns the outer shape. Must not know what a choice looks like.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.gateway.answer import Shape
from twinline.gateway.api_types import CachedTokens, Common, ReasoningTokens, UsageOut
from twinline.gateway.choice import Choice
from twinline.gateway.errors import bad_request
from twinline.gateway.transcript import Piece

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


class Envelope:
    """One answer's id, time and model. The head of a chunk, the same in every event, is encoded once."""

    def __init__(self, prefix: str, kind: str, request: Common, request_id: str) -> None:
        self._id = prefix + request_id
        self._kind = kind
        self._created = int(time.time())
        self._model = request.model
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)
        if request.stream_options is not None and not request.stream:
            raise bad_request("stream_options is only allowed when stream is true.", "stream_options")
        options = request.stream_options
        self.counts = bool(self.with_usage and options and options.continuous_usage_stats)
        if request.stream:
            fields = self._fields(kind if kind == "text_completion" else f"{kind}.chunk")
            self._head = b"data: " + _encoder.encode(fields)[:-1] + b',"choices":['
            self._tail = b'],"usage":null}\n\n' if self.with_usage else b"]}\n\n"

    def _fields(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def counted(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The next chunks tell what their choice has used so far."""
        usage = UsageOut(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
        self._tail = b'],"usage":' + _encoder.encode(usage) + b"}\n\n"

    def chunk(self, choice: msgspec.Struct) -> bytes:
        """The event of one choice's news."""
        return self._head + _encoder.encode(choice) + self._tail

    def chat_text(self, index: int, kind: str, text: str) -> bytes:
        """`chunk` of a chat choice that has text and nothing else, as nearly all have."""
        before, after = self.around_chat_text(index, kind)
        return b"".join((before, _encoder.encode(text), after))

    def around_chat_text(self, index: int, kind: str) -> tuple[bytes, bytes]:
        """The event before and after the text."""
        field = b'"content":' if kind == "content" else b'"reasoning_content":'
        before = b'%b{"index":%d,"delta":{%b' % (self._head, index, field)
        return before, b'},"logprobs":null,"finish_reason":null}' + self._tail

    def usage_chunk(self, usage: UsageOut) -> bytes:
        return self._head + b'],"usage":' + _encoder.encode(usage) + b"}\n\n"

    def whole(self, choices: Sequence[msgspec.Struct], usage: UsageOut, **more: object) -> bytes:
        """The body of an answer that is not streamed."""
        return _encoder.encode(self._fields(self._kind) | {"choices": choices, "usage": usage} | more)


class Counting:
    """A streamed shape whose chunks tell what their choice has used so far."""

    def __init__(self, shape: Shape, envelope: Envelope, prompt_tokens: Sequence[int]) -> None:
        """`prompt_tokens` of each choice."""
        self._shape, self._envelope, self._prompts = shape, envelope, prompt_tokens
        self._made = [0] * len(prompt_tokens)
        self._by_tokens: set[int] = set()

    def news(self, piece: Piece) -> bytes:
        """Text without token ids counts by its deltas, as everywhere."""
        if piece.tokens:
            self._by_tokens.add(piece.index)
        elif piece.index not in self._by_tokens and (piece.parts or piece.tool_calls):
            self._made[piece.index] += 1
        self._made[piece.index] += len(piece.tokens)
        self._envelope.counted(self._prompts[piece.index], self._made[piece.index])
        return self._shape.news(piece)

    def end(self, choices: Sequence[Choice]) -> bytes:
        return self._shape.end(choices)


def usage_of(choices: Sequence[Choice], completion: int | None = None, mark: Sequence[int] = ()) -> UsageOut:
    """A prompt counts once, however many choices it has. `completion` overrides the tokens given out. `mark`: the token
    ids that end reasoning, whose tokens are told then."""
    thought = sum(choice.transcript.reasoning_tokens(mark) for choice in choices) if mark else 0
    reasoning = ReasoningTokens(thought) if thought else None
    if len(choices) == 1:
        (choice,) = choices
        prompt, cached = choice.prompt_tokens, choice.cached_tokens
        made = choice.completion_tokens if completion is None else completion
        return UsageOut(prompt, made, prompt + made, None if cached is None else CachedTokens(cached), reasoning)
    first = {id(choice.request.prompt): choice for choice in reversed(choices)}.values()
    prompt = sum(choice.prompt_tokens for choice in first)
    if completion is None:
        completion = sum(choice.completion_tokens for choice in choices)
    known = [cached for choice in first if (cached := choice.cached_tokens) is not None]
    return UsageOut(prompt, completion, prompt + completion, CachedTokens(sum(known)) if known else None, reasoning)
