"""The shapes of Anthropic's Messages API: what clients send and get.

Owns names, types and ranges of single fields. Unknown fields are ignored, `cache_control` among them: prefixes are
cached without being asked to. Null means the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# As in `api_types.py`: fields that are not acted upon, and those that are refused.
IGNORED: Mapping[str, tuple[object, ...]] = {
    "metadata": ({},), "service_tier": ("auto", "standard_only"), "inference_geo": (), "speed": ("standard",),
    "diagnostics": (), "context_management": ({},), "user_profile_id": (), "workspace_id": (),
}  # fmt: skip
NOT_SUPPORTED: Mapping[str, tuple[object, ...]] = {"container": (), "mcp_servers": ()}


class TextIn(msgspec.Struct, tag="text"):
    text: str


class ImageIn(msgspec.Struct, tag="image"):
    """Known, so that it can be refused by its name."""


class DocumentIn(msgspec.Struct, tag="document"):
    """The same."""


class ThinkingIn(msgspec.Struct, tag="thinking"):
    thinking: str
    signature: str | None = None


class RedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    """Nobody can read it; it is left out."""

    data: str | None = None


class ToolUse(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(msgspec.Struct, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextIn | ImageIn | DocumentIn] | None = None
    is_error: bool | None = None


class MessageIn(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[TextIn | ImageIn | DocumentIn | ThinkingIn | RedactedThinking | ToolUse | ToolResult]


class Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """`enabled` and `adaptive` are the same here, and no budget is kept; max_tokens is."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class PromptRequest(msgspec.Struct, kw_only=True):
    """What makes a prompt: all that `/v1/messages/count_tokens` needs."""

    model: str
    messages: Annotated[list[MessageIn], Meta(min_length=1)]
    system: str | list[TextIn] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # where `output_config.format` was before; older clients send it


class MessagesRequest(PromptRequest, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None
    speed: Any = None
    diagnostics: Any = None
    context_management: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    container: Any = None
    mcp_servers: Any = None


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    """`signature` is empty: what comes back is not checked."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ThinkingTokens(msgspec.Struct, frozen=True):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True):
    """`input_tokens` are those that no cache had."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens_details: ThinkingTokens


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class MessageOut(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(msgspec.Struct, frozen=True):
    input_tokens: int


class MessageError(msgspec.Struct, frozen=True):
    type: str
    message: str


class ErrorOut(msgspec.Struct, frozen=True, tag="error"):
    error: MessageError
    request_id: str | None
