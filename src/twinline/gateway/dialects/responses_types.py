"""The shapes of OpenAI's Responses API: what clients send and get.

Owns names, types and ranges of single fields. Unknown fields are ignored; null means the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from twinline.gateway.api_types import Effort, ReasoningTokens
from twinline.gateway.dialects.sealed import ASKED

# As in `api_types.py`. Nothing is stored here, whatever `store` says: the answer says `"store": false`.
IGNORED: Mapping[str, tuple[object, ...]] = {
    "user": ("",), "store": (), "metadata": ({},), "service_tier": ("auto", "default"), "prompt_cache_key": ("",),
    "prompt_cache_retention": (), "safety_identifier": ("",), "truncation": ("disabled",), "include": ([ASKED],),
    "stream_options": ({},),
}  # fmt: skip
NOT_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "background": (), "conversation": (), "prompt": (), "max_tool_calls": (), "top_logprobs": (0, False),
    "context_management": (),
}  # fmt: skip


class Part(msgspec.Struct):
    """Of a message: `input_text`, `output_text`, `text` or `reasoning_text` with a text, or `refusal`."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, kw_only=True):
    """One item of an input. Without a type it is a message; which fields count is the type's affair."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    namespace: str | None = None
    name: str | None = None
    arguments: str | None = None
    encrypted_content: str | None = None
    output: str | list[Part] | None = None


class Reasoning(msgspec.Struct):
    """Summaries are not made: reasoning items hold the reasoning itself."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(msgspec.Struct):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stream: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Any = None
    background: Any = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    top_logprobs: Any = None
    context_management: Any = None
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    truncation: Any = None
    include: Any = None
    stream_options: Any = None


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    text: str


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    id: str
    status: Status
    summary: list[Any] = []
    content: list[ReasoningText]
    encrypted_content: str | msgspec.UnsetType = msgspec.UNSET


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class Cached(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: Cached
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Incomplete(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens", "content_filter"]


class Failure(msgspec.Struct, frozen=True):
    code: str
    message: str


class ResponseOut(msgspec.Struct, frozen=True, kw_only=True):
    """`instructions` to `top_p` repeat the request."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    model: str
    output: list[MessageItem | ReasoningItem | CallItem] = []
    usage: ResponseUsage | None = None
    instructions: str | None
    max_output_tokens: int | None
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: Reasoning
    store: Literal[False] = False
    temperature: float | None
    text: TextConfig
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    metadata: dict[str, str] = {}
