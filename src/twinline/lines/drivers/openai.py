"""Any remote that speaks OpenAI's API: text in, text out, so a marked exception among the lines.

Owns which of a client's fields are passed on and how a remote's chunks are read. It has no token ids: an answer begun
elsewhere goes on here only where the fleet says how (`options.continuation`), and then by its text.

`options`: `continuation` (see CONTINUATIONS), `pass_fields` (names of further fields of the client's request that this
remote takes), `extra_body` (fields added to every request).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from twinline.lines.drivers.driver import Command, EngineMetrics, Reader
from twinline.lines.drivers.launch import OURS, strings
from twinline.lines.drivers.resume import continued_seed
from twinline.lines.drivers.vectors import TextVectors
from twinline.lines.drivers.vllm import bearer, listed_facts
from twinline.lines.protocol import LineBroken, TextSource, TokenRequest
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Delta, Usage

# How a remote is asked to go on with an assistant message: what is added to the request, and to that message.
CONTINUATIONS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    # It goes on with an assistant's last message by itself. Not for llama.cpp, which gives that message back first.
    "prefill": ({}, {}),
    # vLLM, SGLang, llama.cpp.
    "continue_final_message": ({"continue_final_message": True, "add_generation_prompt": False}, {}),
    # DeepSeek's and Mistral's APIs.
    "prefix": ({}, {"prefix": True}),
}
# What OpenAI's API defines for both endpoints and a remote may be given unasked.
PASSED = frozenset(
    "messages prompt tools tool_choice parallel_tool_calls response_format temperature top_p max_tokens "
    "max_completion_tokens presence_penalty frequency_penalty seed stop user reasoning_effort".split()
)
LIMITS = ("max_completion_tokens", "max_tokens")
OPTIONS = frozenset({"continuation", "pass_fields", "extra_body"})
_VERSIONED = re.compile(r"/v\d+$")

_encode = msgspec.json.Encoder().encode


class _Failure(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Words(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None  # a list: Mistral's API, of a model that thinks
    refusal: str | None = None  # said in place of content
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    delta: _Words | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's API


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Failure | str | None = None


_decode = msgspec.json.Decoder(_Chunk | None).decode


def read_text(payload: bytes) -> Delta | None:
    """One chunk of `/v1/chat/completions` or `/v1/completions`. Raises LineBroken for an error inside the stream."""
    chunk = _decode(payload) or _Chunk()
    if chunk.error is not None:
        failure = chunk.error if isinstance(chunk.error, _Failure) else _Failure(chunk.error)
        raise LineBroken(
            failure.message or "the remote reported an error", None if failure.code is None else str(failure.code)
        )
    usage = None
    if chunk.usage is not None:
        details = chunk.usage.prompt_tokens_details
        cached = chunk.usage.prompt_cache_hit_tokens if details is None else details.cached_tokens
        usage = Usage(chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0, cached)
    if not chunk.choices:
        return None if usage is None else Delta(usage=usage)
    choice = chunk.choices[0]
    words = choice.delta or _Words()
    said = words.content or words.refusal or ""
    content, thought = _parts(said) if isinstance(said, list) else (said, "")
    return Delta(
        finish_reason=choice.finish_reason or None,
        usage=usage,
        text=content if choice.text is None else choice.text,
        reasoning=words.reasoning_content or words.reasoning or thought,
        tool_calls=words.tool_calls or None,
    )


def _parts(content: list[dict[str, Any]]) -> tuple[str, str]:
    """Content and reasoning of a message in parts. Raises ValueError for a text that is none."""
    texts = [part.get("text") or "" for part in content if part.get("type") == "text"]
    thoughts = [part.get("thinking") or "" for part in content if part.get("type") == "thinking"]
    said = [_parts(thought)[0] if isinstance(thought, list) else thought for thought in thoughts]
    if not all(isinstance(text, str) for text in (*texts, *said)):
        raise ValueError("a part of its content is no text")
    return "".join(texts), "".join(said)


class Answer:
    """`read_text` of one answer, whose tool calls each have a number of their own: Gemini's API gives all of them 0, or
    none, at times without an id, too. A call's further fragments may have its id, another (vLLM before 2025) or none;
    they have no name, but that some say it again with the id."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}  # by what the remote calls it
        self._ids: list[str] = []
        self._argued: set[int] = set()  # numbers of those whose arguments have begun

    def __call__(self, payload: bytes) -> Delta | None:
        delta = read_text(payload)
        if delta is None or not delta.tool_calls:
            return delta
        return msgspec.structs.replace(delta, tool_calls=[self._numbered(call) for call in delta.tool_calls])

    def _numbered(self, call: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for what is no call."""
        given, named, function = call.get("index"), str(call.get("id") or ""), call.get("function") or {}
        if not isinstance(given, int | None) or not isinstance(function, dict):
            raise ValueError("a tool call of another shape than OpenAI's")
        number = self._numbers.get(given)
        if number is None or (function.get("name") and self._is_another(number, named)):
            number = self._numbers[given] = len(self._ids)
            self._ids.append(named)
        if function.get("arguments"):
            self._argued.add(number)
        if isinstance(function.get("arguments"), dict):
            call = {**call, "function": {**function, "arguments": _encode(function["arguments"]).decode()}}
        return call if given == number else {**call, "index": number}

    def _is_another(self, number: int, named: str) -> bool:
        """Whether a fragment with a name begins a call, and does not go on with that one."""
        known = self._ids[number]
        return named != known if named else not known and number in self._argued


def begun(source: Mapping[str, Any]) -> bool:
    """Whether the client's own last message is the beginning of the answer."""
    last = (source.get("messages") or [{}])[-1]
    return bool(source.get("continue_final_message") or (last.get("prefix") and last.get("role") == "assistant"))


def going_on(body: dict[str, Any], source: Mapping[str, Any], shown: str, added: Mapping[str, Any]) -> None:
    """Puts the text already delivered at the end of `body`'s messages or prompt, behind the beginning that the client
    gave in `source`. Raises ValueError where it cannot."""
    if "messages" in body:
        messages = list(body["messages"])
        last = messages.pop() if begun(source) else {"role": "assistant", "content": ""}
        said = last.get("content") or ""
        if isinstance(said, str):
            said += shown
        elif shown:  # in the last part: parts are told apart by who joins them
            *parts, part = said
            said = [*parts, {**part, "text": part.get("text", "") + shown}]
        body["messages"] = [*messages, {**last, "content": said, **added}]
    elif isinstance(body.get("prompt"), str):
        body["prompt"] += shown
    else:
        raise ValueError("prompt: only a text can be continued by a line without token ids")


class TextDialect:
    """OpenAI's two endpoints with the client's own request."""

    framing: ClassVar[str] = "sse"
    usage_after_finish: ClassVar[bool] = True

    def __init__(
        self,
        *,
        base: str = "/v1",
        continuation: str | None = None,
        passed: frozenset[str] = PASSED,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`base` goes before the endpoint's path: empty if the remote's URL ends with its version."""
        self._base, self._continuation, self._passed, self._extra = base, continuation, passed, dict(extra or {})

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        if text is None:
            raise ValueError("this line takes text only: a request in token ids cannot be put to it")
        body = {name: value for name, value in text.body.items() if name in self._passed and value is not None}
        body |= {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
        if text.shown or (text.chat and begun(text.body)):
            if self._continuation is None:
                raise ValueError(NO_CONTINUATION)
            fields, added = CONTINUATIONS[self._continuation]
            going_on(body, text.body, text.shown, added)
            if text.chat:
                body |= fields
            k = text.shown_tokens
            for name in LIMITS:
                if isinstance(body.get(name), int):
                    body[name] = max(1, body[name] - k)
            if isinstance(body.get("seed"), int):
                body["seed"] = continued_seed(body["seed"], k)
        body |= self._extra
        return f"{self._base}/{'chat/' if text.chat else ''}completions", _encode(body)

    def reader(self, request: TokenRequest) -> Reader:
        return Answer()

    def carries(self, request: TokenRequest) -> str | None:
        return NO_CONTINUATION if self._continuation is None else None

    def approximates(self, request: TokenRequest) -> str | None:
        return "everything: the answer goes on from its text, which is tokenized anew"


NO_CONTINUATION = (
    "the beginning of the answer: a line without token ids can go on with a text only where options.continuation says "
    f"how ({', '.join(CONTINUATIONS)})"
)


class OpenAI:
    """A remote endpoint that is neither started nor watched here."""

    engine: ClassVar[str] = "openai"
    features: ClassVar[frozenset[str]] = frozenset({"tools", "tool_choice", "grammar"})
    health_path: ClassVar[str | None] = None
    metrics_path: ClassVar[str | None] = None

    def check(self, spec: LineSpec) -> None:
        if spec.url is None:
            raise ValueError("url: an openai line is a remote endpoint and needs its URL, such as https://host/v1")
        if spec.weights is not None:
            raise ValueError("weights: an openai line loads nothing here; `upstream` names the remote's model")
        if spec.container is not None or OURS & spec.options.keys():
            raise ValueError("container: an openai line is started elsewhere")
        for name in spec.options:
            if name not in OPTIONS:
                raise ValueError(f"options: an openai line has no option {name!r}; it has {', '.join(sorted(OPTIONS))}")
        check_continuation(spec, CONTINUATIONS)
        if not strings(spec.options.get("pass_fields", [])):
            raise ValueError("options.pass_fields: a list of field names")
        if not isinstance(spec.options.get("extra_body", {}), Mapping):
            raise ValueError("options.extra_body: an object of fields")

    def command(self, spec: LineSpec, port: int) -> Command:
        raise ValueError("url: an openai line is started elsewhere")

    def dialect(self, spec: LineSpec) -> TextDialect:
        return TextDialect(
            base=_base(spec),
            continuation=spec.options.get("continuation"),
            passed=PASSED | frozenset(spec.options.get("pass_fields", [])),
            extra=spec.options.get("extra_body"),
        )

    def vectors(self, spec: LineSpec) -> TextVectors:
        return TextVectors(_base(spec), spec.options.get("extra_body"))

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return bearer(spec, env)

    def metrics(self, body: bytes) -> EngineMetrics:
        return EngineMetrics()

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        return listed_facts(models)


def _base(spec: LineSpec) -> str:
    """What goes before an endpoint's path: nothing where the URL ends with a version."""
    return "" if _VERSIONED.search((spec.url or "").rstrip("/")) else "/v1"


def check_continuation(spec: LineSpec, known: Mapping[str, object]) -> None:
    """Raises ValueError for an unknown `options.continuation`."""
    named = spec.options.get("continuation")
    if named is not None and not (isinstance(named, str) and named in known):
        raise ValueError(f"options.continuation: {named!r} is not one of {', '.join(known)}")
