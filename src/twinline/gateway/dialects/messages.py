"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's door.

Owns the order of translation, chat and translation back. Must not know what either says.
"""

from __future__ import annotations

import msgspec

from twinline.gateway.access import Visit
from twinline.gateway.answer import Shape
from twinline.gateway.chat import Chat, check, prompt_of
from twinline.gateway.dialects.body import body_of
from twinline.gateway.dialects.messages_in import prompt_chat, to_chat
from twinline.gateway.dialects.messages_out import Streamed, Whole
from twinline.gateway.dialects.messages_types import IGNORED, MessagesRequest, PromptRequest, TokenCount
from twinline.gateway.door import Door, Target
from twinline.gateway.exchange import Exchange
from twinline.gateway.sampling import asked_of
from twinline.gateway.tokens import counted


class Messages:
    """Answers Messages requests by a chat's."""

    def __init__(self, door: Door, chat: Chat) -> None:
        self._door, self._chat = door, chat

    async def answer(
        self, exchange: Exchange, visit: Visit, request: MessagesRequest, target: Target, body: bytes
    ) -> None:
        """Raises ApiError."""
        chat = to_chat(request)
        exchange.warn(asked_of(IGNORED, [getattr(request, name) for name in IGNORED]))
        thinking = request.thinking
        shows = thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"

        def shape(prompt: list[int]) -> Shape:
            made = Streamed if request.stream else Whole
            name, mark = f"msg_{exchange.request_id}", target.served.text.reasoning_end
            return made(name, request.model, len(prompt), shows_thinking=shows, mark=mark)

        await self._chat.serve(exchange, visit, chat, target, body_of(chat), shape)

    async def count(
        self, exchange: Exchange, visit: Visit, request: PromptRequest, target: Target, body: bytes
    ) -> None:
        """Tokens of a prompt that is not answered. Raises ApiError."""
        chat = prompt_chat(request)
        check(chat, target.served)
        _, prompt = await prompt_of(chat, target.served, exchange.body_bytes)
        await counted(self._door, exchange, visit, target)
        exchange.json(msgspec.json.encode(TokenCount(len(prompt))))
