"""A Responses request as a chat's.

Owns that translation, pure. Must not know how a chat is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinline.gateway.api_types import ChatRequest, ContentPart, JsonSchema, Message, ResponseFormat
from twinline.gateway.dialects.responses_tools import chat_tools, flat_name, left_out
from twinline.gateway.dialects.responses_types import (
    IGNORED,
    NOT_SUPPORTED,
    Item,
    Part,
    ResponsesRequest,
    TextFormat,
)
from twinline.gateway.dialects.sealed import unsealed
from twinline.gateway.dialects.unseen import unseen
from twinline.gateway.errors import ApiError, bad_request
from twinline.gateway.sampling import asked_of

_OURS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format",
         "reasoning_effort": "reasoning.effort"}  # fmt: skip
_PICTURES = frozenset({"input_image", "input_file", "computer_screenshot"})
_TEXTS = frozenset({"input_text", "output_text", "text"})


def to_chat(request: ResponsesRequest) -> ChatRequest:
    """Raises ApiError 400 for what has no counterpart."""
    _refuse(request)
    given = [Item(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    messages = [] if request.instructions is None else [Message("system", request.instructions)]
    messages += _messages(given)
    if not messages:
        raise bad_request("The input is an empty list.", "input")
    chat = ChatRequest(model=request.model, messages=messages, stream=request.stream)
    chat.max_tokens = request.max_output_tokens
    chat.temperature, chat.top_p = request.temperature, request.top_p
    chat.reasoning_effort = None if request.reasoning is None else request.reasoning.effort
    if tools := chat_tools(request.tools or ()):
        chat.tools = tools
        chat.parallel_tool_calls = request.parallel_tool_calls
    chat.tool_choice = _tool_choice(request.tool_choice)
    format_ = None if request.text is None else request.text.format
    if format_ is not None and format_.type != "text":
        chat.response_format = _format(format_)
    return chat


def named_here(field: str | None) -> str | None:
    """A chat's field by the name that the client of a response knows; of a place in it, the whole."""
    name = (field or "").partition("[")[0].partition(".")[0]
    return _OURS.get(name, field)


def without_effect(request: ResponsesRequest) -> list[str]:
    """Names of fields that the client set and nothing here acts upon."""
    named = asked_of(IGNORED, [getattr(request, name) for name in IGNORED])
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        named.append("text.verbosity")
    if request.reasoning is not None and request.reasoning.summary is not None:
        named.append("reasoning.summary")
    return named + left_out(request.tools or ())


def _refuse(request: ResponsesRequest) -> None:
    if request.previous_response_id is not None:
        raise ApiError(
            400,
            "Answers are not stored here, so none can be gone on from: send the conversation so far as `input`.",
            param="previous_response_id",
            code="unsupported_parameter",
        )
    refused = asked_of(NOT_SUPPORTED, [getattr(request, name) for name in NOT_SUPPORTED])
    if refused:
        raise ApiError(400, f"{refused[0]} is not supported.", param=refused[0], code="unsupported_parameter")
    include = request.include
    if isinstance(include, list) and "message.output_text.logprobs" in include:
        told = "Log-probabilities are not told here; /v1/chat/completions has them."
        raise ApiError(400, told, param="include", code="unsupported_parameter")


def _messages(items: Sequence[Item]) -> list[Message]:
    """Reasoning and calls belong to the assistant's message beside them, as a chat has it."""
    found: list[Message] = []
    reasoning: list[str] = []
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if item.type == "reasoning":
            said = "".join(part.text or "" for part in item.content or () if isinstance(part, Part))
            reasoning.append(said or unsealed(item.encrypted_content))
            continue
        message = _message(item, where)
        if message.role == "assistant":
            message.reasoning_content, reasoning = "".join(reasoning) or None, []
            last = found[-1] if found else None
            if message.tool_calls and last is not None and last.role == "assistant" and not message.reasoning_content:
                last.tool_calls = [*(last.tool_calls or []), *message.tool_calls]
                continue
        elif reasoning:  # of an answer that was cut before it said anything
            found.append(Message("assistant", "", reasoning_content="".join(reasoning)))
            reasoning = []
        found.append(message)
    return found


def _message(item: Item, where: str) -> Message:
    if item.type == "function_call":
        name = flat_name(item.namespace, _needed(item.name, where, "name"))
        function = {"name": name, "arguments": item.arguments or "{}"}
        call_id = _needed(item.call_id, where, "call_id")
        return Message("assistant", tool_calls=[{"id": call_id, "type": "function", "function": function}])
    if item.type == "function_call_output":
        if item.output is None:
            raise bad_request("A function_call_output needs an output.", f"{where}.output")
        call_id = _needed(item.call_id, where, "call_id")
        output = item.output if isinstance(item.output, str) else list(map(_seen, item.output))
        return Message("tool", _content(output, f"{where}.output"), tool_call_id=call_id)
    if item.type != "message":
        told = f"Items of the type {item.type} are not supported."
        if item.type == "item_reference":
            told = "Nothing is stored here, so no item can be referred to: send the item itself."
        raise ApiError(400, told, param=f"{where}.type", code="unsupported_parameter")
    if item.content is None:
        raise bad_request("A message needs a content.", f"{where}.content")
    return Message(_needed(item.role, where, "role"), _content(item.content, f"{where}.content"))


def _needed(value: str | None, where: str, name: str) -> str:
    if not value:
        raise bad_request(f"This item needs a {name}.", f"{where}.{name}")
    return value


def _seen(part: Part) -> Part:
    """Of what a tool gave."""
    return Part("input_text", text=unseen(part.type)) if part.type in _PICTURES else part


def _content(given: str | list[Part], where: str) -> str | list[ContentPart]:
    if isinstance(given, str):
        return given
    parts = []
    for index, part in enumerate(given):
        text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXTS else None
        if text is None:
            told = f"content parts of type {part.type} are not supported, only text"
            if part.type in _TEXTS or part.type == "refusal":
                told = f"a content part of type {part.type} must have a text"
            raise bad_request(told, f"{where}[{index}]")
        parts.append(ContentPart("text", text))
    return parts


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
            raise ApiError(
                400, "tool_choice names a function or is a mode.", param="tool_choice", code="unsupported_parameter"
            )
        return {"type": "function", "function": {"name": choice["name"]}}
    if choice not in (None, "auto", "none", "required"):
        raise bad_request(f"tool_choice must be auto, none, required or a function, not {choice!r}.", "tool_choice")
    return choice


def _format(given: TextFormat) -> ResponseFormat:
    if given.type == "json_object":
        return ResponseFormat("json_object")
    if given.schema is None:
        raise bad_request("text.format of the type json_schema needs a schema.", "text.format.schema")
    schema = JsonSchema(name=given.name or "output", schema=given.schema, strict=given.strict)
    return ResponseFormat("json_schema", schema)
