"""`POST /v1/chat/completions`: messages in, a message out, whole or streamed.

Owns the chat shape. Must not know how tokens become text or how a line is spoken to.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec

from twinline.gateway.api_types import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
    ReplyMessage,
)
from twinline.gateway.aside import made
from twinline.gateway.door import Door
from twinline.gateway.errors import bad_request
from twinline.gateway.exchange import Exchange
from twinline.gateway.generation import Generation, Piece, together
from twinline.gateway.logprobs import chat_logprobs
from twinline.gateway.reply import DONE, Envelope, usage_of
from twinline.gateway.sampling import TIMEOUT_HEADER, check_prompt, check_text, plan, refuse_unsupported, room
from twinline.gateway.served import ServedModel
from twinline.gateway.text.reasoning import ReasoningParser
from twinline.gateway.text.template import encode_prompt
from twinline.lines.wire import TokenLogprob

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final_message"})


class Chat:
    """Answers chat requests; one for all."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def answer(self, exchange: Exchange, request: ChatRequest, served: ServedModel) -> None:
        """Raises ApiError."""
        _check(request, served)
        envelope = Envelope("chatcmpl-", "chat.completion", request, exchange.request_id)
        rendered, prompt = await _prompt(request, served, exchange.body_bytes)
        limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        if limit == 0:
            raise bad_request("max_tokens must be at least 1.", "max_tokens")
        shared = plan(
            request,
            served,
            request_id=exchange.request_id,
            max_tokens=room(len(prompt), limit, served, "messages"),
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            timeout_header=exchange.header(TIMEOUT_HEADER),
        )
        generations = [
            Generation(
                served,
                shared.for_choice(prompt, index, index),
                index,
                shared.rules,
                ReasoningParser.for_prompt(rendered),
                self._door.meter(served),
            )
            for index in range(request.n or 1)
        ]
        shape = _Shape(served, request.top_logprobs or 0)
        if request.stream:
            await _stream(exchange, envelope, shape, prompt, generations)
        else:
            await _whole(exchange, envelope, shape, prompt, generations)


class _Shape:
    """How log-probabilities are written for one request."""

    def __init__(self, served: ServedModel, alternatives: int) -> None:
        self._tokenizer = served.tokenizer
        self._alternatives = alternatives

    def logprobs(self, entries: list[TokenLogprob] | None) -> ChatLogprobs | None:
        return None if entries is None else chat_logprobs(self._tokenizer, entries, self._alternatives)


def _check(request: ChatRequest, served: ServedModel) -> None:
    refuse_unsupported(
        request,
        {
            "tools": bool(request.tools),
            "tool_choice": request.tool_choice not in (None, "none", "auto"),
            "functions": bool(request.functions),
            "response_format": request.response_format is not None and request.response_format.type != "text",
        },
    )
    if len(request.messages) > served.max_model_len:
        raise bad_request(
            f"{len(request.messages)} messages do not fit this model's context of {served.max_model_len} tokens.",
            "messages",
            "context_length_exceeded",
        )
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    if request.continue_final_message:
        if request.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt exclude each other.", "continue_final_message"
            )
        if request.messages[-1].role != "assistant":
            raise bad_request("continue_final_message needs the last message to be the assistant's.", "messages")
    for name in request.chat_template_kwargs or ():
        if name in _RESERVED:
            raise bad_request(f"chat_template_kwargs must not set {name}.", "chat_template_kwargs")
    for index, message in enumerate(request.messages):
        if message.role not in _ROLES:
            roles = ", ".join(sorted(_ROLES))
            raise bad_request(
                f"A message's role must be one of {roles}, not {message.role!r}.", f"messages[{index}].role"
            )


async def _prompt(request: ChatRequest, served: ServedModel, body_bytes: int) -> tuple[str, list[int]]:
    """The rendered prompt and its token ids."""
    template = served.template
    if template is None:
        raise bad_request(f"The model {served.name} has no chat template; use /v1/completions.", "model")
    going_on = bool(request.continue_final_message)
    opening = not going_on if request.add_generation_prompt is None else request.add_generation_prompt

    def make() -> tuple[str, list[int]]:
        rendered = template.render(
            [_plain(msgspec.to_builtins(message)) for message in request.messages],
            add_generation_prompt=opening,
            continue_final_message=going_on,
            **(request.chat_template_kwargs or {}),
        )
        check_text(len(rendered), served, "messages")
        return rendered, encode_prompt(served.tokenizer, rendered)

    try:
        rendered, prompt = await made(make, body_bytes)
    except ValueError as error:
        raise bad_request(f"{error}", "messages") from error
    check_prompt(prompt, served, "messages")
    return rendered, prompt


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """What the client sent: templates ask whether a field is there.

    OpenAI's `developer` is what every template calls `system`; under its new name many would drop it silently.
    """
    if message["role"] == "developer":
        message["role"] = "system"
    return {name: value for name, value in message.items() if value is not None or name == "content"}


async def _whole(
    exchange: Exchange, envelope: Envelope, shape: _Shape, prompt: list[int], generations: list[Generation]
) -> None:
    texts: list[dict[str, list[str]]] = [{"content": [], "reasoning": []} for _ in generations]
    entries: list[list[TokenLogprob] | None] = [None] * len(generations)
    last: list[Piece | None] = [None] * len(generations)
    async with aclosing(together(generations)) as pieces:
        async for piece in pieces:
            for kind, text in piece.parts:
                texts[piece.index][kind].append(text)
            if piece.logprobs is not None:
                so_far = entries[piece.index]
                if so_far is None:
                    entries[piece.index] = list(piece.logprobs)
                else:
                    so_far.extend(piece.logprobs)
            last[piece.index] = piece
    choices = []
    for index, end in enumerate(last):
        message = ReplyMessage(
            role="assistant",
            content="".join(texts[index]["content"]),
            reasoning_content="".join(texts[index]["reasoning"]) or None,
        )
        finish, reason = (end.finish, end.stop_reason) if end else (None, None)
        choices.append(ChatChoice(index, message, shape.logprobs(entries[index]), finish, reason))
    await exchange.json(envelope.whole(choices, usage_of([prompt], generations)))


async def _stream(
    exchange: Exchange, envelope: Envelope, shape: _Shape, prompt: list[int], generations: list[Generation]
) -> None:
    """Nothing is sent before the first piece, so that a line's refusal is still an HTTP status."""
    begun: set[int] = set()
    async with aclosing(together(generations)) as pieces:
        async for piece in pieces:
            data = b"".join(map(envelope.chunk, _chunk_choices(piece, shape)))
            if piece.index not in begun:
                begun.add(piece.index)
                data = envelope.chunk(ChatChunkChoice(piece.index, ChatDelta(role="assistant", content=""))) + data
            if data:
                await exchange.events(data)
    end = envelope.usage_chunk(usage_of([prompt], generations)) if envelope.with_usage else b""
    await exchange.events(end + DONE)
    await exchange.end()


def _chunk_choices(piece: Piece, shape: _Shape) -> list[ChatChunkChoice]:
    """A chunk per part: many clients look at one of `reasoning_content` and `content` only."""
    logprobs = shape.logprobs(piece.logprobs)
    choices = []
    for kind, text in piece.parts:
        delta = ChatDelta(content=text) if kind == "content" else ChatDelta(reasoning_content=text)
        choices.append(ChatChunkChoice(piece.index, delta, logprobs))
        logprobs = None
    if logprobs is not None and logprobs.content:
        choices.append(ChatChunkChoice(piece.index, ChatDelta(content=""), logprobs))
    if piece.finish is not None:
        choices.append(ChatChunkChoice(piece.index, ChatDelta(), None, piece.finish))
    return choices
