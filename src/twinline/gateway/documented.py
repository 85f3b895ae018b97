"""Whole answers as the OpenAPI document tells them, where code elsewhere writes them in parts or from plain data.

Owns their names and types alone. Tests decode real answers as these, and find nothing missing or left over.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from twinline.gateway.api_types import ChatChoice, ChatChunkChoice, PromptLogprobs, TextChoice, UsageOut

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]


class ErrorDetail(msgspec.Struct):
    message: str
    type: ErrorType
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    error: ErrorDetail


class ChatAnswer(msgspec.Struct, kw_only=True):
    """`prompt_logprobs` is there when it was asked for."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageOut
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """`usage` is there when `stream_options` ask for it: null but in the last chunk, or a choice's own so far."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageOut | msgspec.UnsetType | None = msgspec.UNSET


class DocumentedTextChoice(TextChoice, frozen=True, kw_only=True):
    """`prompt_logprobs` is there when it was asked for."""

    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class CompletionAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[DocumentedTextChoice]
    usage: UsageOut


class CompletionChunk(msgspec.Struct, kw_only=True):
    """`usage` as in a chat's chunks."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageOut | msgspec.UnsetType | None = msgspec.UNSET


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding` is a list of numbers, or base64 of little-endian float32 where `encoding_format` asks for it."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Capabilities(msgspec.Struct, kw_only=True):
    """What a model can be asked for; more may be added. `chat`: at /v1/chat/completions, /v1/responses and
    /v1/messages."""

    chat: bool
    completions: bool
    embeddings: bool


class Model(msgspec.Struct, kw_only=True):
    """`label` says that a model is a demonstration."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["twinline"]
    max_model_len: int
    capabilities: Capabilities
    label: str | msgspec.UnsetType = msgspec.UNSET


class Models(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[Model]


class LineHealth(msgspec.Struct):
    state: str
    reason: str | None


class ModelHealth(msgspec.Struct):
    status: Literal["ok", "unavailable"]
    lines: dict[str, LineHealth]


class Health(msgspec.Struct, kw_only=True):
    """Version and models are told to those on the same machine or with a key."""

    status: Literal["ok", "degraded", "unavailable"]
    version: str | msgspec.UnsetType = msgspec.UNSET
    models: dict[str, ModelHealth] | msgspec.UnsetType = msgspec.UNSET


class Lines(msgspec.Struct, kw_only=True):
    """What this gateway has seen of each line."""

    generation: int
    lines: list[dict[str, Any]]
