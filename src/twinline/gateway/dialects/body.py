"""A translated request as a client of OpenAI's chat would have written it, for lines that take text.

Owns that only what was asked for is written.
"""

from __future__ import annotations

import msgspec

from twinline.gateway.api_types import ChatRequest


def body_of(chat: ChatRequest) -> bytes:
    """JSON of the fields that are not null."""
    fields = {name: value for name in chat.__struct_fields__ if (value := getattr(chat, name)) is not None}
    return msgspec.json.encode(fields)
