"""A chat's pieces as Anthropic's message: its events when streamed, its errors.

Owns how they are written. Must not know requests beyond what an answer repeats, nor lines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.gateway.choice import Choice
from twinline.gateway.dialects.messages_types import (
    ErrorOut,
    MessageError,
    MessageOut,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ThinkingTokens,
    ToolUseBlock,
)
from twinline.gateway.dialects.runs import Run, Runs
from twinline.gateway.errors import OVER_CONTEXT, ApiError
from twinline.gateway.reply import usage_of
from twinline.gateway.transcript import Piece

PING_SECONDS = 10.0  # proxies give up after 30 or 60
_encode = msgspec.json.Encoder().encode
_DELTAS = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
# What clients look for before they shorten a conversation, or ask for less; `errors.beyond` says it.
_OVER = ("prompt is too long", "exceed context limit")
_SIGNATURE = {"type": "signature_delta", "signature": ""}
_TYPES = {
    401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class MessagesWording:
    """Errors as Anthropic's API words them."""

    def head(self, request_id: str) -> bytes:
        """Its clients look for `request-id`."""
        name = request_id.encode()
        return b"x-request-id: %b\r\nrequest-id: %b\r\n" % (name, name)

    def body(self, error: ApiError, request_id: str | None) -> bytes:
        kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        told = error.message
        if error.code == OVER_CONTEXT and not any(words in told for words in _OVER):  # a line's own words
            told = f"{_OVER[0]}: {told}"
        return _encode(ErrorOut(MessageError(kind, told), request_id))

    def event(self, error: ApiError, request_id: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % self.body(error, request_id)


class Whole:
    """Gathers the pieces."""

    def __init__(
        self, message_id: str, model: str, prompt_tokens: int, *, shows_thinking: bool, mark: Sequence[int] = ()
    ) -> None:
        self._id, self._model, self._prompt_tokens = message_id, model, prompt_tokens
        self._mark = mark
        self.runs = Runs(shows_reasoning=shows_thinking)

    def news(self, piece: Piece) -> bytes:
        self.runs.push(piece)
        return b""

    def end(self, choices: Sequence[Choice]) -> bytes:
        blocks = [_block(run) for run in self.runs.runs]
        return _encode(self.message(blocks, self.usage(choices), self.stop_reason, self.stop_sequence))

    def message(
        self, blocks: list[Any], usage: MessageUsage, reason: StopReason | None, sequence: str | None
    ) -> MessageOut:
        return MessageOut(
            id=self._id, model=self._model, content=blocks, stop_reason=reason, stop_sequence=sequence, usage=usage
        )

    def usage(self, choices: Sequence[Choice]) -> MessageUsage:
        """Before there are choices, of the prompt alone."""
        if not choices:
            return MessageUsage(self._prompt_tokens, 0, 0, 0, ThinkingTokens(0))
        used = usage_of(choices, mark=self._mark)
        details, thought = used.prompt_tokens_details, used.completion_tokens_details
        cached = 0 if details is None else min(details.cached_tokens, used.prompt_tokens)
        thinking = ThinkingTokens(0 if thought is None else thought.reasoning_tokens)
        return MessageUsage(used.prompt_tokens - cached, used.completion_tokens, 0, cached, thinking)

    @property
    def stop_sequence(self) -> str | None:
        reason = self.runs.stop_reason
        return reason if isinstance(reason, str) else None

    @property
    def stop_reason(self) -> StopReason:
        if self.runs.finish == "length":
            return "max_tokens"
        if self.runs.finish == "content_filter":  # a remote's
            return "refusal"
        if self.stop_sequence is not None:
            return "stop_sequence"
        return "tool_use" if self.runs.finish == "tool_calls" or self.runs.calls else "end_turn"


class Streamed(Whole):
    """Nothing is sent before the first piece, so that a refusal is still an HTTP status. While nothing of an answer is
    shown, such as thinking that was not asked for, pings tell the client and proxies that it goes on."""

    _begun = False
    _told = 0.0  # when the last event was

    def news(self, piece: Piece) -> bytes:
        data = b"" if self._begun else self._start()
        for what, run, text in self.runs.push(piece):
            if what == "more":
                kind, field = _DELTAS[run.kind]
                delta = {"type": kind, field: text}
                data += _event("content_block_delta", index=run.place, delta=delta)
            elif what == "open":
                data += _event("content_block_start", index=run.place, content_block=_empty(run))
            else:
                if run.kind == "reasoning":  # clients keep the block for their next request only if they were told one
                    data += _event("content_block_delta", index=run.place, delta=_SIGNATURE)
                data += _event("content_block_stop", index=run.place)
        now = time.monotonic()
        if not data and now - self._told >= PING_SECONDS:
            data = _event("ping")
        if data:
            self._told = now
        return data

    def end(self, choices: Sequence[Choice]) -> bytes:
        delta = {"stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence}
        start = b"" if self._begun else self._start()
        return start + _event("message_delta", delta=delta, usage=self.usage(choices)) + _event("message_stop")

    def _start(self) -> bytes:
        self._begun = True
        return _event("message_start", message=self.message([], self.usage(()), None, None))


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def _empty(run: Run) -> TextBlock | ThinkingBlock | ToolUseBlock:
    if run.kind == "call":
        return ToolUseBlock(run.call_id, run.name, {})
    return TextBlock("") if run.kind == "content" else ThinkingBlock("")


def _block(run: Run) -> TextBlock | ThinkingBlock | ToolUseBlock:
    if run.kind == "call":
        return ToolUseBlock(run.call_id, run.name, _input(run.text))
    return TextBlock(run.text) if run.kind == "content" else ThinkingBlock(run.text)


def _input(arguments: str) -> dict[str, Any]:
    """A model may write what is no JSON object; the client still gets to see it."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}
