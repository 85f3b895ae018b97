"""`POST /v1/responses`: OpenAI's newer door, stateless.

Owns the order of translation, chat and translation back. Must not know what either says.
"""

from __future__ import annotations

from twinline.gateway.access import Visit
from twinline.gateway.answer import Shape
from twinline.gateway.chat import Chat
from twinline.gateway.dialects.body import body_of
from twinline.gateway.dialects.responses_in import to_chat, without_effect
from twinline.gateway.dialects.responses_out import Streamed, Whole
from twinline.gateway.dialects.responses_types import ResponsesRequest
from twinline.gateway.door import Target
from twinline.gateway.exchange import Exchange


class Responses:
    """Answers Responses requests by a chat's."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def answer(
        self, exchange: Exchange, visit: Visit, request: ResponsesRequest, target: Target, body: bytes
    ) -> None:
        """Raises ApiError."""
        chat = to_chat(request)
        exchange.warn(without_effect(request))

        def shape(prompt: list[int]) -> Shape:
            mark = target.served.text.reasoning_end
            if not request.stream:
                return Whole(request, exchange.request_id, mark)
            streamed = Streamed(request, exchange.request_id, mark)
            exchange.wording = streamed
            return streamed

        await self._chat.serve(exchange, visit, chat, target, body_of(chat), shape)
