"""What of a chat's request its template is told, and in which words.

Owns the switches of reasoning, and whether the last message is gone on with. Must not know tools nor tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec

from twinline.gateway.api_types import ChatRequest, Message
from twinline.gateway.text.template import text_of


def switches(request: ChatRequest) -> dict[str, Any]:
    """What a template is told of reasoning: by the names that DeepSeek V3.1, Qwen3 and GLM, and gpt-oss ask for. The
    vendors' own fields go before OpenAI's."""
    effort, told = request.reasoning_effort, request.thinking
    thinks = None if effort is None else effort != "none"
    if told is not None and told.type in ("enabled", "disabled"):
        thinks = told.type == "enabled"
    if request.enable_thinking is not None:
        thinks = request.enable_thinking
    found: dict[str, Any] = {} if thinks is None else {"thinking": thinks, "enable_thinking": thinks}
    return found if effort is None else found | {"reasoning_effort": effort}


def going_on(request: ChatRequest) -> bool:
    """Whether the answer goes on with the last message: by vLLM's field, or by DeepSeek's and Mistral's mark on it."""
    last = request.messages[-1]
    return bool(request.continue_final_message or (last.prefix and last.role == "assistant"))


def continued_text(request: ChatRequest) -> str:
    """The message that the output goes on with, if it does so."""
    content = plain(request.messages[-1])["content"] if going_on(request) else ""
    return content if isinstance(content, str) else text_of(content or ())


def plain(message: Message) -> dict[str, Any]:
    """What the client sent: templates ask whether a field is there.

    OpenAI's `developer` is what every template calls `system`; under its new name many would drop it silently.
    """
    plain: dict[str, Any] = msgspec.to_builtins(message)
    plain.setdefault("content", None)
    if message.role == "developer":
        plain["role"] = "system"
    return plain


def stand_in(request: ChatRequest) -> str:
    """What is counted as the prompt where no line takes tokens, and the folder that lends the tokenizer has a template
    of another model: who answers renders the messages by a template of its own."""
    parts = []
    for message in map(plain, request.messages):
        content = message["content"]
        said = content if isinstance(content, str) else text_of(content or ())
        calls = [msgspec.json.encode(call).decode() for call in message.get("tool_calls") or ()]
        parts += [message["role"], said, *calls]
    return "\n".join(parts)
