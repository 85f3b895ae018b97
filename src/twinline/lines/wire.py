"""What a streamed chunk of the line protocol means: from its JSON to a `Delta`.

Owns the chunk's shape and the framing of events. Pure: no I/O, no errors but ValueError.
"""

from __future__ import annotations

from typing import Any

import msgspec

TOKEN_PREFIX = "token_id:"


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """The log-probability of one token, and the likeliest alternatives as (token id, log-probability), best first.

    `rank` is its place among all tokens, 1 the likeliest; None where the line does not say, as of output tokens.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the line sees them. `cached_tokens` is None when the line does not say."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What arrived: token ids, their log-probabilities when asked for, and what only the first or last chunk has.

    `text`, `reasoning` and `tool_calls` (OpenAI's deltas) come from engines that give no token ids, and only from them.
    """

    tokens: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_tokens: list[int] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    usage: Usage | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] | None = None


class VectorDelta(Delta, frozen=True, kw_only=True, gc=False):
    """All of an answer: one vector for each text, in their order, as little-endian float32."""

    vectors: list[bytes]


class _Logprobs(msgspec.Struct, gc=False):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _PromptLogprob(msgspec.Struct, gc=False):
    logprob: float | None
    rank: int | None = None


class _Choice(msgspec.Struct, gc=False):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, _PromptLogprob] | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Error(msgspec.Struct, gc=False):
    message: str = ""
    code: str | int | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of the stream as it stands on the wire."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class EventLines:
    """Cuts a byte stream into payloads: those of its `data:` lines (comments, other fields and empty ones, which keep a
    connection alive, are dropped), or, without `sse`, its lines."""

    __slots__ = ("_parts", "_sse", "pending")

    def __init__(self, sse: bool = True) -> None:
        self._sse = sse
        self._parts: list[bytes] = []  # an unfinished line, in parts: prompt log-probabilities can be many megabytes
        self.pending = 0  # bytes of that line

    def feed(self, data: bytes) -> list[bytes]:
        if not self._parts and self._sse and data.startswith(b"data: ") and data.endswith(b"\n\n"):
            payloads = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(payloads):  # whole events of one line each, as nearly always
                return [said for payload in payloads if (said := payload.strip())]
        head, *lines = data.split(b"\n")
        if not lines:
            self._parts.append(head)
            self.pending += len(head)
            return []
        if self._parts:
            head = b"".join([*self._parts, head])
            self._parts.clear()
        last = lines.pop()
        if last:
            self._parts.append(last)
        self.pending = len(last)
        if self._sse:
            return [said for line in (head, *lines) if line.startswith(b"data:") and (said := line[5:].strip())]
        return [line for line in (head.strip(), *map(bytes.strip, lines)) if line]


def to_delta(chunk: Chunk) -> Delta:
    """Raises ValueError when the chunk's parts do not fit together."""
    usage = None if chunk.usage is None else to_usage(chunk.usage)
    if not chunk.choices:
        return Delta(usage=usage)
    choice = chunk.choices[0]
    tokens = choice.token_ids or []
    if choice.logprobs is None and choice.prompt_logprobs is None:
        return Delta(
            tokens, None, choice.prompt_token_ids, None, choice.finish_reason, choice.stop_reason, usage
        )  # the path of nearly every token
    logprobs = None if choice.logprobs is None else _token_logprobs(tokens, choice.logprobs)
    prompt_logprobs = None
    if choice.prompt_logprobs is not None:
        if choice.prompt_token_ids is None or len(choice.prompt_token_ids) != len(choice.prompt_logprobs):
            raise ValueError("prompt_logprobs needs prompt_token_ids of the same length")
        pairs = zip(choice.prompt_token_ids, choice.prompt_logprobs, strict=True)
        prompt_logprobs = [_prompt_logprob(token, entry) for token, entry in pairs]
    return Delta(
        tokens,
        logprobs,
        choice.prompt_token_ids,
        prompt_logprobs,
        choice.finish_reason,
        choice.stop_reason,
        usage,
    )


def to_usage(said: _Usage) -> Usage:
    details = said.prompt_tokens_details
    return Usage(said.prompt_tokens, said.completion_tokens or 0, details.cached_tokens if details else None)


def merge(first: Delta, then: Delta) -> Delta:
    """Two deltas of one stream as one."""
    logprobs = first.logprobs
    if then.logprobs is not None:
        logprobs = (logprobs or []) + then.logprobs
    return Delta(
        first.tokens + then.tokens,
        logprobs,
        first.prompt_tokens if first.prompt_tokens is not None else then.prompt_tokens,
        first.prompt_logprobs if first.prompt_logprobs is not None else then.prompt_logprobs,
        then.finish_reason if then.finish_reason is not None else first.finish_reason,
        then.stop_reason if then.stop_reason is not None else first.stop_reason,
        then.usage if then.usage is not None else first.usage,
        first.text + then.text,
        first.reasoning + then.reasoning,
        (first.tool_calls or []) + then.tool_calls if then.tool_calls is not None else first.tool_calls,
    )


def _token_logprobs(tokens: list[int], wire: _Logprobs) -> list[TokenLogprob]:
    tops = wire.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(wire.token_logprobs) == len(tops):
        raise ValueError(f"{len(tokens)} tokens with {len(wire.token_logprobs)} log-probabilities")
    return [
        TokenLogprob(token, _finite(logprob), _ranked(top))
        for token, logprob, top in zip(tokens, wire.token_logprobs, tops, strict=True)
    ]


def _ranked(top: dict[str, float | None] | None) -> tuple[tuple[int, float], ...]:
    if not top:
        return ()
    pairs = [(int(name.removeprefix(TOKEN_PREFIX)), _finite(logprob)) for name, logprob in top.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _prompt_logprob(token: int, entry: dict[str, _PromptLogprob] | None) -> TokenLogprob | None:
    if entry is None:
        return None
    own = entry.get(str(token))
    if own is None:
        raise ValueError(f"prompt_logprobs lacks the prompt's own token {token}")
    top = sorted(((int(name), _finite(item.logprob)) for name, item in entry.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token, _finite(own.logprob), tuple(top), own.rank)


def _finite(logprob: float | None) -> float:
    """JSON has no infinity: a line sends null for a token that was impossible, and vLLM -9999."""
    return -9999.0 if logprob is None else logprob
