"""The shapes of what clients send and get: OpenAI's fields, and the extensions that vLLM's users know.

Owns names, types and ranges of single fields. Rules that join several fields are `sampling.py`'s and the endpoints'.
Unknown fields are ignored, but not those known to change an answer; null means the default everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_LOGPROBS = 20
# Fields of `Common` that would change an answer and have no effect here: refused, never dropped, unless the value asks
# for nothing: null, an empty list, or one of those beside the name; where there are none, false.
NOT_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "guided_decoding_backend": (), "guided_whitespace_pattern": (), "logits_processors": (),
    "use_beam_search": (), "length_penalty": (1,), "early_stopping": (),
    "allowed_token_ids": (), "bad_words": (), "spaces_between_special_tokens": (True,), "detokenize": (True,),
    "include_reasoning": (True,), "return_tokens_as_token_ids": (), "prompt_embeds": (), "cache_salt": (),
    "kv_transfer_params": (), "vllm_xargs": (), "mm_processor_kwargs": (), "chat_template": (), "documents": (),
    "modalities": (["text"],), "audio": (), "web_search_options": (),
}  # fmt: skip
# Fields of `Common` that change no answer and are not acted upon: the client is told so by a header. Beside each the
# values that ask for nothing.
IGNORED: Mapping[str, tuple[object, ...]] = {
    "user": ("",), "store": (), "metadata": ({},), "service_tier": ("auto", "default"), "prompt_cache_key": ("",),
    "prompt_cache_retention": (), "safety_identifier": ("",), "prediction": ({},), "verbosity": ("medium",),
}  # fmt: skip

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(msgspec.Struct):
    """`continuous_usage_stats` (vLLM's): every chunk tells what its choice has used so far; needs `include_usage`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # OpenAI's padding against eavesdroppers; there is none here


class JsonSchema(msgspec.Struct, omit_defaults=True):
    """`name` and `strict` change nothing: a schema is always kept to."""

    name: Any = None
    description: Any = None
    schema: Any = None
    strict: Any = None


class ResponseFormat(msgspec.Struct, omit_defaults=True):
    type: str
    json_schema: JsonSchema | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields that both endpoints share."""

    model: str
    max_tokens: _Count | None = None
    min_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: _Share | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=86400)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    prompt_logprobs: _Logprobs | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    logits_processors: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    early_stopping: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    spaces_between_special_tokens: Any = None
    detokenize: Any = None
    include_reasoning: Any = None
    return_tokens_as_token_ids: Any = None
    prompt_embeds: Any = None
    cache_salt: Any = None
    kv_transfer_params: Any = None
    vllm_xargs: Any = None
    mm_processor_kwargs: Any = None
    chat_template: Any = None
    documents: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    prediction: Any = None
    verbosity: Any = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None


ROLES = ("system", "developer", "user", "assistant", "tool")


class ContentPart(msgspec.Struct, omit_defaults=True):
    type: Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]
    text: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    role: Annotated[str, Meta(extra_json_schema={"enum": ROLES})]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None


class ThinkingSwitch(msgspec.Struct):
    """DeepSeek's and GLM's switch of reasoning; `adaptive` and `auto`, which others have, leave it to the model."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]


class ChatRequest(Common, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking: ThinkingSwitch | None = None
    enable_thinking: bool | None = None
    functions: list[Any] | None = None


class CompletionRequest(Common, kw_only=True):
    prompt: str | list[str | int | list[int]]
    add_special_tokens: bool | None = None
    echo: bool | None = None
    logprobs: _Logprobs | None = None
    return_token_ids: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class CachedTokens(msgspec.Struct, frozen=True):
    cached_tokens: int


class ReasoningTokens(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class UsageOut(msgspec.Struct, frozen=True, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatLogprob]


class LegacyLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True):
    """Of one token at one place of a prompt, in vLLM's words. `rank` 1 is the likeliest; null where nobody says."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id; null for the first token, which follows nothing


class ReplyMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: str
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ScoredChoice(TextChoice, frozen=True, kw_only=True):
    prompt_logprobs: PromptLogprobs
