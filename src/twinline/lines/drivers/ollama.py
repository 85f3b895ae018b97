"""Ollama: its server, and its own `/api/chat` and `/api/generate` in text.

**Written from its public source and documentation (commit fb3076099, 2026-08), not recorded**: it could not be
installed where this was written. Owns what is peculiar to it: messages, tools and formats of its own shape, one JSON
object per line, and defaults that cut a long prompt or shift it away without a word unless they are turned off. It has
no token ids, so it is a marked exception like every text line (openai.py). It keeps counts nowhere but in its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from twinline.lines.drivers.driver import Command, EngineMetrics, Reader
from twinline.lines.drivers.launch import LOOPBACK, OURS, launched, program
from twinline.lines.drivers.openai import NO_CONTINUATION, begun, check_continuation, going_on
from twinline.lines.drivers.resume import continued_seed
from twinline.lines.drivers.vectors import OllamaVectors
from twinline.lines.drivers.vllm import bearer, check_weights
from twinline.lines.protocol import LineBroken, TextSource, TokenRequest
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Delta, Usage

PREFILL: Mapping[str, str] = {"prefill": "some of its models go on with a last message of the assistant"}
ASKED_FOR_LENGTH = ("max_completion_tokens", "max_tokens")
EFFORTS = frozenset({"low", "medium", "high", "max"})

_encode = msgspec.json.Encoder().encode


class _Function(msgspec.Struct):
    name: str = ""
    index: int | None = None
    arguments: dict[str, Any] | None = None


class _ToolCall(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)
    id: str | None = None


class _Message(msgspec.Struct):
    content: str = ""
    thinking: str = ""
    tool_calls: list[_ToolCall] | None = None


class _Line(msgspec.Struct):
    message: _Message | None = None  # of /api/chat
    response: str = ""  # of /api/generate
    thinking: str = ""
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int = 0
    prompt_eval_cached_count: int | None = None  # of newer versions: how many of them it had
    eval_count: int = 0
    error: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


class Answer:
    """Reads one answer's lines. Calls come whole; they are numbered through, as OpenAI's are."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, payload: bytes) -> Delta | None:
        if not payload:
            return None
        line = _decode(payload)
        if line.error is not None:
            raise LineBroken(line.error or "the line reported an error")
        message = line.message or _Message(line.response, line.thinking)
        calls = [self._call(call) for call in message.tool_calls or []]
        if not line.done:
            return Delta(text=message.content, reasoning=message.thinking, tool_calls=calls or None)
        if line.done_reason not in ("stop", "length"):  # it was cut: unloaded, or its runner's connection closed
            raise LineBroken(f"Ollama ended the answer with {line.done_reason or 'no'} reason")
        finish = "tool_calls" if self._calls and line.done_reason == "stop" else line.done_reason
        return Delta(
            finish_reason=finish,
            usage=Usage(line.prompt_eval_count, line.eval_count, line.prompt_eval_cached_count),
            text=message.content,
            reasoning=message.thinking,
            tool_calls=calls or None,
        )

    def _call(self, call: _ToolCall) -> dict[str, Any]:
        index = self._calls
        self._calls += 1
        arguments = _encode(call.function.arguments or {}).decode()
        return {
            "index": index,
            "id": call.id or f"call_{index}",
            "type": "function",
            "function": {"name": call.function.name, "arguments": arguments},
        }


class OllamaDialect:
    """A client's request in Ollama's words."""

    framing: ClassVar[str] = "lines"
    usage_after_finish: ClassVar[bool] = False

    def __init__(
        self, model: str, *, context: int | None, continuation: str | None, keep_alive: str | int | None
    ) -> None:
        self._model = model
        self._context, self._continuation, self._keep_alive = context, continuation, keep_alive

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        if text is None:
            raise ValueError("this line takes text only: a request in token ids cannot be put to it")
        if request.min_tokens > text.shown_tokens:
            raise ValueError("min_tokens: Ollama has nothing like it")
        source = dict(text.body)
        if text.shown or (text.chat and begun(source)):
            if self._continuation is None:
                raise ValueError(NO_CONTINUATION)
            going_on(source, source, text.shown, {})
        body: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "truncate": False,  # else a prompt that is too long loses its beginning
            "shift": False,  # else the beginning of a long conversation is thrown away while it answers
            "options": self._options(request, source, text.shown_tokens),
        }
        if self._keep_alive is not None:
            body["keep_alive"] = self._keep_alive
        form = _format(source.get("response_format"))
        if form is not None:
            body["format"] = form
        think = _think(source)
        if think is not None:
            body["think"] = think
        if not text.chat:
            if not isinstance(source.get("prompt"), str) or not source["prompt"]:
                raise ValueError("prompt: Ollama takes one text; an empty one only asks it to load the model")
            return "/api/generate", _encode(body | {"prompt": source["prompt"], "raw": True})
        body["messages"] = list(_messages(source.get("messages") or []))
        if source.get("tools"):
            body["tools"] = source["tools"]
        return "/api/chat", _encode(body)

    def _options(self, request: TokenRequest, source: Mapping[str, Any], k: int) -> dict[str, Any]:
        options: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": max(0, request.top_k),
            "min_p": request.min_p,
            "repeat_penalty": request.repetition_penalty,
            "repeat_last_n": 0 if request.repetition_penalty == 1.0 else -1,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "seed": continued_seed(request.seed, k),
        }
        if request.presence_penalty or request.frequency_penalty:
            options["repeat_last_n"] = -1  # the window of all penalties; -1 is the whole context
        if any(source.get(name) is not None for name in ASKED_FOR_LENGTH):
            options["num_predict"] = max(1, request.max_tokens - k)
        if self._context is not None:
            options["num_ctx"] = self._context
        stop = source.get("stop")
        if stop:
            options["stop"] = [stop] if isinstance(stop, str) else stop
        return options

    def reader(self, request: TokenRequest) -> Reader:
        return Answer()

    def carries(self, request: TokenRequest) -> str | None:
        return NO_CONTINUATION if self._continuation is None else None

    def approximates(self, request: TokenRequest) -> str | None:
        return "everything: the answer goes on from its text, which is tokenized anew"


def _format(response_format: object) -> Any:
    """OpenAI's `response_format` as Ollama's `format`: `json`, a JSON schema, or None."""
    match response_format:
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
        case _:
            return None


def _think(source: Mapping[str, Any]) -> bool | str | None:
    """Ollama's switch of reasoning; the vendors' own fields go before OpenAI's, as they do for a template."""
    effort, told, thinks = (source.get(name) for name in ("reasoning_effort", "thinking", "enable_thinking"))
    kind = told.get("type") if isinstance(told, Mapping) else None
    if thinks is None and kind in ("enabled", "disabled"):
        thinks = kind == "enabled"
    if thinks is None and effort == "none":
        thinks = False
    return effort if thinks is not False and effort in EFFORTS else thinks


def _messages(messages: list[Any]) -> Iterator[dict[str, Any]]:
    """OpenAI's messages as Ollama's. Raises ValueError for a part that it has no place for."""
    names: dict[str, str] = {}  # of the functions called, by the call's id
    for message in messages:
        content, images = _parts(message.get("content"))
        made: dict[str, Any] = {"role": message.get("role", "user"), "content": content}
        if images:
            made["images"] = images
        if message.get("reasoning_content"):
            made["thinking"] = message["reasoning_content"]
        calls = []
        for call in message.get("tool_calls") or []:
            function, call_id = call.get("function") or {}, call.get("id") or ""
            if not isinstance(call_id, str):
                raise ValueError("tool_calls: a call's id is text")
            names[call_id] = function.get("name", "")
            calls.append({"id": call_id, "function": _called(function)})
        if calls:
            made["tool_calls"] = calls
        if message.get("tool_call_id"):
            made["tool_call_id"] = message["tool_call_id"]
            made["tool_name"] = names.get(message["tool_call_id"], "")
        yield made


def _called(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments") or "{}"
    try:
        if not isinstance(arguments, Mapping):
            arguments = msgspec.json.decode(arguments)
    except TypeError:
        what = f"the arguments of {function.get('name')!r} are neither text nor an object"
        raise ValueError(f"tool_calls: {what}") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"tool_calls: the arguments of {function.get('name')!r} are not JSON: {error}") from error
    return {"name": function.get("name", ""), "arguments": arguments}


def _parts(content: object) -> tuple[str, list[str]]:
    """A message's text and its images, which Ollama wants as bare base64."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), []
    texts, images = [], []
    for part in content:
        match part:
            case {"type": "text", "text": str(said)}:
                texts.append(said)
            case {"type": "image_url", "image_url": {"url": str(url)}} if url.startswith("data:"):
                images.append(url.partition(",")[2])
            case _:
                raise ValueError("messages: Ollama takes text and images given as data: URLs")
    return "".join(texts), images


class Ollama:
    """Ollama's server, which loads a model when it is first asked for it."""

    engine: ClassVar[str] = "ollama"
    features: ClassVar[frozenset[str]] = frozenset({"tools", "grammar", "sampling"})
    health_path: ClassVar[str | None] = "/api/version"
    metrics_path: ClassVar[str | None] = None

    def check(self, spec: LineSpec) -> None:
        check_weights(spec, "the name of one of Ollama's models")
        known = OURS | {"continuation", "keep_alive"}
        for name in spec.options:
            if name not in known:
                raise ValueError(
                    f"options: an ollama line has no option {name!r}; it has {', '.join(sorted(known))}; Ollama's own "
                    "settings are environment variables (env)"
                )
        check_continuation(spec, PREFILL)

    def command(self, spec: LineSpec, port: int) -> Command:
        env = {"OLLAMA_HOST": f"{LOOPBACK}:{port}", "OLLAMA_NO_CLOUD": "1"}
        if spec.context is not None:
            env["OLLAMA_CONTEXT_LENGTH"] = str(spec.context)
        if spec.slots is not None:
            env["OLLAMA_NUM_PARALLEL"] = str(spec.slots)
        return launched(spec, port, [*program(spec, ("ollama",)), "serve"], env)

    def dialect(self, spec: LineSpec) -> OllamaDialect:
        return OllamaDialect(
            spec.upstream or spec.weights or spec.model,
            context=spec.context,
            continuation=spec.options.get("continuation"),
            keep_alive=spec.options.get("keep_alive"),
        )

    def vectors(self, spec: LineSpec) -> OllamaVectors:
        model = spec.upstream or spec.weights or spec.model
        return OllamaVectors(model, spec.context, spec.options.get("keep_alive"))

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return bearer(spec, env)

    def metrics(self, body: bytes) -> EngineMetrics:
        return EngineMetrics()

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}
