"""A Messages request as a chat's.

Owns that translation, pure. Must not know how a chat is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.gateway.api_types import ChatRequest, ContentPart, Effort, JsonSchema, Message, ResponseFormat
from twinline.gateway.dialects.messages_types import (
    NOT_SUPPORTED,
    DocumentIn,
    ImageIn,
    MessageIn,
    MessagesRequest,
    PromptRequest,
    RedactedThinking,
    TextIn,
    ThinkingIn,
    Tool,
    ToolChoice,
    ToolUse,
)
from twinline.gateway.dialects.unseen import unseen
from twinline.gateway.errors import ApiError, bad_request
from twinline.gateway.sampling import asked_of

_BILLING = "x-anthropic-billing-header:"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def prompt_chat(request: PromptRequest) -> ChatRequest:
    """What makes the prompt, as a chat's request. Raises ApiError 400."""
    system = request.system if isinstance(request.system, str | None) else _system(request.system)
    messages = [Message("system", system)] if system or isinstance(system, str) else []
    for index, message in enumerate(request.messages):
        messages += _messages(message, index)
    prefilled = request.messages[-1].role == "assistant"  # the answer goes on from there
    config = request.output_config
    effort: Effort | None = None if config is None else config.effort
    if request.thinking is not None:
        effort = "none" if request.thinking.type == "disabled" else effort or "medium"
    chat = ChatRequest(model=request.model, messages=messages, reasoning_effort=effort)
    if prefilled:
        chat.continue_final_message, chat.add_generation_prompt = True, False
    if request.tools:
        chat.tools = [_tool(tool, index) for index, tool in enumerate(request.tools)]
    choice = request.tool_choice
    if choice is not None:
        chat.tool_choice = _tool_choice(choice)
        if choice.disable_parallel_tool_use:
            chat.parallel_tool_calls = False
    form = request.output_format if config is None or config.format is None else config.format
    if form is not None:
        schema = JsonSchema(name="output", schema=form.schema)
        chat.response_format = ResponseFormat("json_schema", schema)
    return chat


def to_chat(request: MessagesRequest) -> ChatRequest:
    """Raises ApiError 400 for what has no counterpart."""
    refused = asked_of(NOT_SUPPORTED, [getattr(request, name) for name in NOT_SUPPORTED])
    if refused:
        raise ApiError(400, f"{refused[0]} is not supported.", param=refused[0], code="unsupported_parameter")
    chat = prompt_chat(request)
    chat.max_tokens = request.max_tokens
    chat.stop = request.stop_sequences
    chat.stream = request.stream
    chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
    return chat


def _system(blocks: Sequence[TextIn]) -> list[ContentPart]:
    """Claude Code's first block is a header for Anthropic, another in each conversation: with it in front of the
    prompt, no two conversations would have a prefix in common that a cache could hold."""
    return [ContentPart("text", block.text) for block in blocks if not block.text.startswith(_BILLING)]


def _result(given: str | Sequence[TextIn | ImageIn | DocumentIn]) -> str | list[ContentPart]:
    if isinstance(given, str):
        return given
    texts = (block.text if isinstance(block, TextIn) else unseen(str(block.__struct_config__.tag)) for block in given)
    return [ContentPart("text", text) for text in texts]


def _part(block: TextIn | ImageIn | DocumentIn, where: str) -> ContentPart:
    if isinstance(block, TextIn):
        return ContentPart("text", block.text)
    told = f"Content of the type {block.__struct_config__.tag} is not supported, only text."
    raise ApiError(400, told, param=where, code="unsupported_parameter")


def _messages(given: MessageIn, index: int) -> list[Message]:
    """A tool's result is a message of its own; an assistant's thinking and calls are fields of its message."""
    if isinstance(given.content, str):
        return [Message(given.role, given.content)]
    found: list[Message] = []
    texts: list[ContentPart] = []
    thinking: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in enumerate(given.content):
        where = f"messages[{index}].content[{place}]"
        if isinstance(block, TextIn | ImageIn | DocumentIn):
            texts.append(_part(block, where))
            continue
        assistants = isinstance(block, ThinkingIn | RedactedThinking | ToolUse)
        if assistants != (given.role == "assistant"):
            kind = block.__struct_config__.tag
            told = f"A message of the role {given.role} cannot have a block of the type {kind}."
            raise bad_request(told, where)
        if isinstance(block, ThinkingIn):
            thinking.append(block.thinking)
        elif isinstance(block, ToolUse):
            arguments = msgspec.json.encode(block.input).decode()
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinking):
            found.append(Message("tool", _result(block.content or ""), tool_call_id=block.tool_use_id))
    if texts or thinking or calls or not found:
        content = texts or (None if calls else "")
        reasoning = "".join(thinking) or None
        found.append(Message(given.role, content, reasoning_content=reasoning, tool_calls=calls or None))
    return found


def _tool(tool: Tool, index: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        told = f"The tool {tool.name} is of the type {tool.type}, which only Anthropic runs; give a tool of your own."
        raise ApiError(400, told, param=f"tools[{index}].type", code="unsupported_parameter")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema or {"type": "object"}}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if not choice.name:
        raise bad_request("tool_choice of the type tool needs a name.", "tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}
