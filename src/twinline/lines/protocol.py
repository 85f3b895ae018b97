"""What a line is asked for, and what it may do instead of answering (docs/line-protocol.md).

Owns the names of a request's fields and the errors. Must not know how they travel, text, or models.
"""

from __future__ import annotations

from typing import Any

import msgspec


class LineError(Exception):
    """Anything a line did instead of answering."""


class LineRefused(LineError):
    """The line did not take the request; nothing was generated. `status` is HTTP's, `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        retry_after: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after, self.param = status, message, code, retry_after, param


class LineBroken(LineError):
    """The line took the request and then failed: reset, early end, broken JSON, an in-band error, or silence."""

    def __init__(self, reason: str, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must look like. `kind`: how `text` is read, `json_schema`, `regex`, `ebnf` or `structural_tag`.

    It begins once the answer has said `after`, such as `</think>`; empty: at once. With `opener`, such as `<think>`, it
    waits for that only in an answer that opens so.
    """

    kind: str
    text: str
    after: str = ""
    opener: str = ""


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a line is asked for; every field is the protocol's. `max_tokens` counts `output_prefix_ids` too."""

    model: str
    prompt: list[int]
    request_id: str
    output_prefix_ids: list[int] = []
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[str, float] = {}
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    priority: int = 0
    timeout_s: float | None = None


class VectorRequest(TokenRequest, frozen=True, kw_only=True, gc=False):
    """What a line is asked for vectors of some texts. `prompt` is the token ids of all of them, one after the other;
    `texts` are as the client wrote them, None where it gave token ids. `dimensions` is the size that all
    vectors must have; it is passed on to lines that shorten them themselves."""

    inputs: list[list[int]]
    texts: list[str] | None = None
    dimensions: int | None = None


class TextSource(msgspec.Struct, frozen=True):
    """A request as its client wrote it, for engines that take text only.

    `body` is the client's JSON object; `chat` says which endpoint it is for. `shown` is the text already delivered: the
    answer has to go on after it; `shown_tokens` is about how many tokens that was.
    """

    body: dict[str, Any]
    chat: bool
    shown: str = ""
    shown_tokens: int = 0
