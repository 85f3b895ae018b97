"""`POST /tokenize` and `/detokenize`, as vLLM has them: a text or a chat as token ids, and token ids as text.

Owns those two shapes. No line is asked, and no tokens are metered; a key's limit on requests counts them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from twinline.gateway.access import Visit
from twinline.gateway.api_types import ChatRequest, Effort, Message, ThinkingSwitch
from twinline.gateway.aside import made
from twinline.gateway.chat import check, prompt_of
from twinline.gateway.door import Door, Target
from twinline.gateway.errors import bad_request
from twinline.gateway.exchange import Exchange
from twinline.gateway.sampling import check_text

Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Of a `prompt` or of `messages`. A prompt gets special tokens unless told otherwise; a chat template writes its
    own."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    thinking: ThinkingSwitch | None = None
    enable_thinking: bool | None = None
    tools: list[Any] | None = None


class TokenizeAnswer(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[Id]


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    prompt: str


async def counted(door: Door, exchange: Exchange, visit: Visit, target: Target) -> None:
    """One request, of no tokens, against its key's limits. Raises ApiError 429 or 503."""
    await door.access.admit(visit, 0, 0.0)
    door.access.book(visit, exchange, target.served.name, (), "finished")


class Tokens:
    """Answers both; one for all."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def tokenize(
        self, exchange: Exchange, visit: Visit, request: TokenizeRequest, target: Target, body: bytes
    ) -> None:
        """Raises ApiError."""
        if (request.prompt is None) == (request.messages is None):
            raise bad_request("Either prompt or messages is needed.", "prompt")
        served = target.served
        ids = await (self._of_text if request.messages is None else self._of_chat)(exchange, request, target)
        strings = [served.tokenizer.token(token) for token in ids] if request.return_token_strs else None
        await counted(self._door, exchange, visit, target)
        answer = TokenizeAnswer(len(ids), served.max_model_len, ids, strings)
        exchange.json(msgspec.json.encode(answer))

    async def detokenize(
        self, exchange: Exchange, visit: Visit, request: DetokenizeRequest, target: Target, body: bytes
    ) -> None:
        """Special tokens are shown. Raises ApiError."""
        tokenizer = target.served.tokenizer
        wrong = next((token for token in request.tokens if token >= target.served.vocab_size), None)
        if wrong is not None:
            told = f"Token id {wrong} is outside the model's vocabulary of {target.served.vocab_size} tokens."
            raise bad_request(told, "tokens")
        text = await made(lambda: tokenizer.decode(request.tokens, skip_special=False), exchange.body_bytes)
        await counted(self._door, exchange, visit, target)
        exchange.json(msgspec.json.encode(DetokenizeAnswer(text)))

    @staticmethod
    async def _of_text(exchange: Exchange, request: TokenizeRequest, target: Target) -> list[int]:
        text, tokenizer = request.prompt or "", target.served.tokenizer
        check_text(len(text), target.served, "prompt")
        special = request.add_special_tokens is not False
        return await made(lambda: tokenizer.encode(text, special=special), exchange.body_bytes)

    @staticmethod
    async def _of_chat(exchange: Exchange, request: TokenizeRequest, target: Target) -> list[int]:
        if request.add_special_tokens:
            raise bad_request("A chat's template writes its special tokens itself.", "add_special_tokens")
        chat = ChatRequest(
            model=target.served.name,
            messages=request.messages or [],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
            reasoning_effort=request.reasoning_effort,
            thinking=request.thinking,
            enable_thinking=request.enable_thinking,
            tools=request.tools,
        )
        check(chat, target.served)
        _, ids = await prompt_of(chat, target.served, exchange.body_bytes)
        return ids
