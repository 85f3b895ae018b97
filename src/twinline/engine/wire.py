"""The line protocol's JSON, as the worker reads and writes it (docs/line-protocol.md).

Owns the shapes on the wire and their checks. Token ids only; no engine state.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, TypeVar

import msgspec

from twinline.engine.request import Output, Request, SamplingParams, TokenLogprob

Id = Annotated[int, msgspec.Meta(ge=0)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # JSON has no bound, and float() has one


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class GrammarField(msgspec.Struct):
    """`engine.grammars.grammar.Grammar`, which says what may stand in it."""

    kind: str
    text: str
    after: str = ""
    opener: str = ""


class CompletionRequest(msgspec.Struct):
    prompt: Annotated[list[Id], msgspec.Meta(min_length=1)]
    model: str | None = None
    output_prefix_ids: list[Id] = []
    max_tokens: Integer = 16
    min_tokens: Integer = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Integer = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: Integer | None = None
    logit_bias: dict[str, float] = {}
    stop_token_ids: list[Id] = []
    ignore_eos: bool = False
    logprobs: Integer | None = None
    prompt_logprobs: Integer | None = None
    grammar: GrammarField | None = None
    priority: Integer = 0
    timeout_s: float | None = None
    request_id: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Integer = 1
    return_token_ids: bool = True
    return_tokens_as_token_ids: bool = True


class BadRequest(ValueError):
    """The request is wrong; `param` names the field, when one is to blame."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


_decoder = msgspec.json.Decoder(CompletionRequest)
encode = msgspec.json.Encoder().encode
T = TypeVar("T")


def decode(body: bytes) -> CompletionRequest:
    """As `read`."""
    return read(body, _decoder)


def read(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Raises BadRequest for what is not JSON, lacks a field or has one of the wrong type."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else None
        raise BadRequest(str(error), field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def to_request(wire: CompletionRequest, request_id: str, *, vocab: int, eos: frozenset[int], seed: int) -> Request:
    """The engine's request; `eos` are the model's own end tokens, `seed` is used if none came. Raises BadRequest."""
    if wire.n != 1:
        raise BadRequest("a line serves n = 1; send n requests", "n")
    if not wire.return_token_ids:
        raise BadRequest("a native line has no text: return_token_ids must be true", "return_token_ids")
    for name in ("prompt", "output_prefix_ids", "stop_token_ids"):
        worst = max(getattr(wire, name), default=0)
        if worst >= vocab:
            raise BadRequest(f"{name} has token id {worst}, and the vocabulary ends at {vocab - 1}", name)
    try:
        bias = tuple((int(token), float(value)) for token, value in wire.logit_bias.items())
    except ValueError:
        raise BadRequest("logit_bias: keys are token ids", "logit_bias") from None
    if any(not 0 <= token < vocab for token, _ in bias):
        raise BadRequest(f"logit_bias has a token id outside 0 to {vocab - 1}", "logit_bias")
    stops = frozenset(wire.stop_token_ids) | (frozenset() if wire.ignore_eos else eos)
    try:
        params = SamplingParams(
            max_tokens=wire.max_tokens,
            min_tokens=wire.min_tokens,
            temperature=wire.temperature,
            top_k=max(wire.top_k, 0),
            top_p=wire.top_p,
            min_p=wire.min_p,
            presence_penalty=wire.presence_penalty,
            frequency_penalty=wire.frequency_penalty,
            repetition_penalty=wire.repetition_penalty,
            seed=seed if wire.seed is None else wire.seed,
            logit_bias=bias,
            stop_token_ids=stops,
            logprobs=wire.logprobs,
            prompt_logprobs=wire.prompt_logprobs,
        )
    except ValueError as error:
        raise BadRequest(str(error), str(error).split(" ")[0]) from None
    deadline = None if wire.timeout_s is None else time.monotonic() + wire.timeout_s
    return Request(
        request_id, wire.prompt, params, output=list(wire.output_prefix_ids), priority=wire.priority, deadline=deadline
    )


def _name(token: int) -> str:
    return f"token_id:{token}"


def logprobs(entries: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    if not entries:
        return None
    return {
        "tokens": [_name(e.token) for e in entries],
        "token_logprobs": [e.logprob for e in entries],
        "top_logprobs": [{_name(t): p for t, p in e.top} | {_name(e.token): e.logprob} for e in entries],
    }


def prompt_logprobs(entries: tuple[TokenLogprob | None, ...] | None) -> list[dict[str, Any] | None] | None:
    if entries is None:
        return None
    found: list[dict[str, Any] | None] = []
    for e in entries:
        if e is None:
            found.append(None)
            continue
        row = {str(t): {"logprob": p, "rank": rank} for rank, (t, p) in enumerate(e.top, 1)}
        found.append(row | {str(e.token): {"logprob": e.logprob, "rank": e.rank}})
    return found


def choice(output: Output) -> dict[str, Any]:
    """One choice of a chunk; `text` is empty, because a line has no text."""
    body: dict[str, Any] = {
        "index": 0,
        "text": "",
        "token_ids": output.tokens,
        "logprobs": logprobs(output.logprobs),
        "finish_reason": output.finish,
        "stop_reason": output.stop_token,
    }
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    return body


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
