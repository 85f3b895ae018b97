"""`POST /v1/chat/completions`: messages in, a message out, whole or streamed.

Owns the chat shape. Must not know how tokens become text or how a line is spoken to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from twinline.gateway.access import Visit
from twinline.gateway.answer import Answer, Shape
from twinline.gateway.api_types import (
    ROLES,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
    ReplyMessage,
)
from twinline.gateway.aside import made
from twinline.gateway.choice import Choice
from twinline.gateway.door import Door, Target
from twinline.gateway.errors import ApiError, bad_request, over_context
from twinline.gateway.exchange import Exchange
from twinline.gateway.forms import Asked, Form, decoder_of, has_form
from twinline.gateway.logprobs import chat_logprobs, checked, prompt_logprobs
from twinline.gateway.order import Order
from twinline.gateway.rendering import continued_text, going_on, plain, stand_in, switches
from twinline.gateway.reply import DONE, Counting, Envelope, usage_of
from twinline.gateway.sampling import (
    TIMEOUT_HEADER,
    Plan,
    check_some,
    ignored,
    plan,
    readable,
    refuse_unsupported,
    room,
    truncated,
)
from twinline.gateway.served import ServedModel
from twinline.gateway.text.reasoning import ReasoningParser, around_answer
from twinline.gateway.text.template import encode_prompt
from twinline.gateway.tools import tool_use
from twinline.gateway.transcript import Around, Piece
from twinline.lines.wire import TokenLogprob

_read_messages = decoder_of(ChatRequest, "messages").decode
_RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final_message"})


class Chat:
    """Answers chat requests; one for all."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def answer(
        self, exchange: Exchange, visit: Visit, request: ChatRequest, target: Target, body: bytes
    ) -> Form[Any] | None:
        """Raises ApiError."""
        envelope = Envelope("chatcmpl-", "chat.completion", request, exchange.request_id)

        def shape(prompt: list[int]) -> Shape:
            return _shape(envelope, request, target.served, prompt)

        shared = await self.serve(exchange, visit, request, target, body, shape)
        if request.tools or going_on(request) or not has_form(request, shared, exchange):
            return None
        bare = msgspec.structs.replace(request, messages=[])
        return _Form(bare, target, shared, exchange.told, chat=True, bounded=_limit(request) is not None)

    async def serve(
        self,
        exchange: Exchange,
        visit: Visit,
        request: ChatRequest,
        target: Target,
        body: bytes,
        shape: Callable[[list[int]], Shape],
    ) -> Plan:
        """Whatever the door's dialect: `request` and `body` say the same, and `shape` writes the answer to a prompt.

        Raises ApiError.
        """
        served = target.served
        served.check_generates()
        check(request, served)
        use = tool_use(request, served.calls)
        exchange.warn(ignored(request))
        rendered, prompt = await prompt_of(request, served, exchange.body_bytes)
        continued = continued_text(request)
        limit = _limit(request)
        if limit == 0:
            raise bad_request("max_tokens must be at least 1.", "max_tokens")
        shared = plan(
            request,
            served,
            request_id=exchange.request_id,
            max_tokens=room(len(prompt), limit, served, "messages"),
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=request.prompt_logprobs,
            timeout_header=exchange.header(TIMEOUT_HEADER),
            keep=served.text.call_marks if use.names else served.text.marks,
            around_answer=around_answer(rendered, continued),
            calls=partial(use.held, served.calls),
        )
        order = Order(target, visit, shared, body, chat=True, bounded=limit is not None)
        n = request.n or 1
        await order.admit(self._door.access, len(prompt), n)
        answer = Answer(exchange, self._door.access, visit, served.name, shape(prompt), bool(request.stream))
        ask = order.ask(prompt)
        choices = [
            order.choice(
                prompt,
                ask,
                index,
                index,
                ReasoningParser.for_prompt(rendered, served.text.answer_tags, continued),
                answer,
                use.parser(served.calls),
            )
            for index in range(n)
        ]
        await answer.run(choices)
        return shared


class _Form(Form[ChatRequest]):
    """Of requests without tools, whose messages end before the answer."""

    def read(self, part: bytes) -> Asked | None:
        served = self.target.served
        try:
            part.decode("utf-8")  # the decoder does not look inside fields it skips
            request = msgspec.structs.replace(self.request, messages=_read_messages(part))
            if going_on(request):
                return None
            check(request, served)
            rendered, prompt = _made(request, served, None)
            prompt = _checked(prompt, request, served)
            max_tokens = room(len(prompt), _limit(request), served, "messages")
        except (msgspec.MsgspecError, RecursionError, ValueError, ApiError):
            return None
        if max_tokens < self.min_tokens:
            return None
        return Asked(prompt, max_tokens, ReasoningParser.for_prompt(rendered, served.text.answer_tags))

    def shape(self, asked: Asked, request_id: str) -> Shape:
        envelope = Envelope("chatcmpl-", "chat.completion", self.request, request_id)
        return _shape(envelope, self.request, self.target.served, asked.prompt)


def _shape(envelope: Envelope, request: ChatRequest, served: ServedModel, prompt: list[int]) -> Shape:
    if not request.stream:
        whole = _Whole if request.prompt_logprobs is None else _Scored
        return whole(envelope, served, request, request.n or 1)
    streamed = _Streamed(envelope, served, request)
    return Counting(streamed, envelope, [len(prompt)] * (request.n or 1)) if envelope.counts else streamed


class _Logprobs:
    """How log-probabilities are written for one request."""

    def __init__(self, served: ServedModel, request: ChatRequest) -> None:
        self._tokenizer = served.tokenizer
        self._alternatives = request.top_logprobs or 0

    def of(self, entries: list[TokenLogprob] | None) -> ChatLogprobs | None:
        return None if entries is None else chat_logprobs(self._tokenizer, entries, self._alternatives)


class _Streamed:
    """Nothing is sent before the first piece, so that a refusal is still an HTTP status."""

    def __init__(self, envelope: Envelope, served: ServedModel, request: ChatRequest) -> None:
        self._envelope = envelope
        self._logprobs = _Logprobs(served, request)
        self._begun: set[int] = set()
        self._mark = served.text.reasoning_end

    def news(self, piece: Piece) -> bytes:
        """A chunk per part: many clients look at one of `reasoning_content` and `content` only."""
        chunk = self._envelope.chunk
        index = piece.index
        data = b""
        if index not in self._begun:
            self._begun.add(index)
            data = chunk(ChatChunkChoice(index, ChatDelta(role="assistant", content="")))
        logprobs = self._logprobs.of(piece.logprobs)
        for kind, text in piece.parts:
            if logprobs is None:  # nearly every token
                data += self._envelope.chat_text(index, kind, text)
                continue
            delta = ChatDelta(content=text) if kind == "content" else ChatDelta(reasoning_content=text)
            data += chunk(ChatChunkChoice(index, delta, logprobs))
            logprobs = None
        if logprobs is not None and logprobs.content:
            data += chunk(ChatChunkChoice(index, ChatDelta(content=""), logprobs))
        for call in piece.tool_calls or ():  # clients that add up deltas take one of a call at a time
            data += chunk(ChatChunkChoice(index, ChatDelta(tool_calls=[call])))
        if piece.finish is not None:
            data += chunk(ChatChunkChoice(index, ChatDelta(), None, piece.finish))
        return data

    def around(self, index: int) -> Around | None:
        around = self._envelope.around_chat_text
        return {"content": around(index, "content"), "reasoning": around(index, "reasoning")}

    def end(self, choices: Sequence[Choice]) -> bytes:
        used = usage_of(choices, mark=self._mark) if self._envelope.with_usage else None
        return (b"" if used is None else self._envelope.usage_chunk(used)) + DONE


class _Whole:
    """Gathers the pieces."""

    def __init__(self, envelope: Envelope, served: ServedModel, request: ChatRequest, n: int) -> None:
        self._envelope = envelope
        self._logprobs = _Logprobs(served, request)
        self._texts: list[dict[str, list[str]]] = [{"content": [], "reasoning": []} for _ in range(n)]
        self._entries: list[list[TokenLogprob] | None] = [None] * n
        self._calls: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        self._last: list[Piece | None] = [None] * n
        self._mark = served.text.reasoning_end

    def news(self, piece: Piece) -> bytes:
        index = piece.index
        for kind, text in piece.parts:
            self._texts[index][kind].append(text)
        if piece.logprobs is not None:
            so_far = self._entries[index]
            if so_far is None:
                self._entries[index] = list(piece.logprobs)
            else:
                so_far.extend(piece.logprobs)
        if piece.tool_calls:
            self._calls[index] += piece.tool_calls
        self._last[index] = piece
        return b""

    def end(self, choices: Sequence[Choice]) -> bytes:
        made = []
        for index, last in enumerate(self._last):
            content = "".join(self._texts[index]["content"])
            calls = whole_calls(self._calls[index])
            message = ReplyMessage(
                role="assistant",
                content=content or (None if calls else ""),
                reasoning_content="".join(self._texts[index]["reasoning"]) or None,
                tool_calls=calls or None,
            )
            finish, reason = (last.finish, last.stop_reason) if last else (None, None)
            made.append(ChatChoice(index, message, self._logprobs.of(self._entries[index]), finish, reason))
        return self._envelope.whole(made, usage_of(choices, mark=self._mark), **self.more(choices))

    def more(self, choices: Sequence[Choice]) -> dict[str, object]:
        """Further fields of the answer."""
        return {}


class _Scored(_Whole):
    """Tells the prompt's log-probabilities, too: once, for all choices have the same prompt."""

    def __init__(self, envelope: Envelope, served: ServedModel, request: ChatRequest, n: int) -> None:
        super().__init__(envelope, served, request, n)
        self._tokenizer, self._alternatives = served.tokenizer, request.prompt_logprobs or 0
        self._prompt: list[TokenLogprob | None] | None = None

    def news(self, piece: Piece) -> bytes:
        if piece.prompt_logprobs is not None:
            self._prompt = piece.prompt_logprobs
        return super().news(piece)

    def more(self, choices: Sequence[Choice]) -> dict[str, object]:
        entries = checked(self._prompt, len(choices[0].request.prompt))
        return {"prompt_logprobs": prompt_logprobs(self._tokenizer, entries, self._alternatives)}


def whole_calls(deltas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's streamed tool calls as whole ones: names come once, arguments in pieces."""
    calls: dict[int, dict[str, Any]] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        said = delta.get("function") or {}
        index = delta.get("index", 0)
        call = calls.setdefault(index, {"id": None, "type": "function", "function": {"name": ""}})
        call["id"] = call["id"] or delta.get("id")
        call["function"]["name"] += said.get("name") or ""
        arguments.setdefault(index, []).append(said.get("arguments") or "")
    for index, call in calls.items():
        call["function"]["arguments"] = "".join(arguments[index])
    return [calls[index] for index in sorted(calls)]


def check(request: ChatRequest, served: ServedModel) -> None:
    """Raises ApiError 400 for fields that do not fit each other."""
    refuse_unsupported(
        request,
        {
            "functions": bool(request.functions),
            "echo": bool(request.echo),
            "return_token_ids": bool(request.return_token_ids),
        },
    )
    if len(request.messages) > served.max_model_len:
        told = f"the prompt is too long: it has {len(request.messages)} messages"
        raise over_context(served.max_model_len, told, "messages")
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    if request.continue_final_message:
        if request.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt exclude each other.", "continue_final_message"
            )
        if request.messages[-1].role != "assistant":
            raise bad_request("continue_final_message needs the last message to be the assistant's.", "messages")
    for name in request.chat_template_kwargs or ():
        if name in _RESERVED:
            raise bad_request(f"chat_template_kwargs must not set {name}.", "chat_template_kwargs")
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            roles = ", ".join(sorted(ROLES))
            raise bad_request(
                f"A message's role must be one of {roles}, not {message.role!r}.", f"messages[{index}].role"
            )
        if message.content is None and message.role != "assistant":
            raise bad_request("A message needs its content.", f"messages[{index}].content")


async def prompt_of(request: ChatRequest, served: ServedModel, body_bytes: int) -> tuple[str, list[int]]:
    """The rendered prompt and its token ids. Raises ApiError 400."""
    tools = tool_use(request, served.calls).tools
    try:
        rendered, prompt = await made(lambda: _made(request, served, tools), body_bytes)
    except ValueError as error:
        raise bad_request(f"{error}", "messages") from error
    return rendered, _checked(prompt, request, served)


def _made(
    request: ChatRequest, served: ServedModel, tools: Sequence[Mapping[str, Any]] | None
) -> tuple[str, list[int]]:
    """The rendered prompt and its token ids. Raises ValueError for messages that the template refuses, or ApiError."""
    try:
        rendered = _rendered(request, served, tools)
    except ValueError:
        if not served.is_told_text:
            raise
        rendered = stand_in(request)
    text = readable(rendered, served, "messages", request.truncate_prompt_tokens)
    return rendered, encode_prompt(served.tokenizer, text)


def _rendered(request: ChatRequest, served: ServedModel, tools: Sequence[Mapping[str, Any]] | None) -> str:
    template = served.template
    if template is None:
        raise bad_request(f"The model {served.name} has no chat template; use /v1/completions.", "model")
    continued = going_on(request)
    opening = not continued if request.add_generation_prompt is None else request.add_generation_prompt
    return template.render(
        [plain(message) for message in request.messages],
        tools,
        add_generation_prompt=opening,
        continue_final_message=continued,
        **(switches(request) | (request.chat_template_kwargs or {})),
    )


def _checked(prompt: list[int], request: ChatRequest, served: ServedModel) -> list[int]:
    """All of it that the client wants. Raises ApiError."""
    check_some(prompt, "messages")
    return truncated(prompt, request.truncate_prompt_tokens, _limit(request), served)


def _limit(request: ChatRequest) -> int | None:
    """Output tokens at most, by either field that says so."""
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
