"""Bodies of requests, as far as what a line is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any

from benchmarks.fuzz.given import TINY, Given, Made


def requests() -> Made:
    """Bodies at five doors, as far as what a line is asked for. What is refused can be told, what is taken sent on."""
    import msgspec
    from tests.gateway.text.calls.templates import TEMPLATES

    from twinline.gateway import chat, completions, embeddings, exchange, order
    from twinline.gateway.api_types import ChatRequest, CompletionRequest
    from twinline.gateway.dialects import messages_in, responses_in
    from twinline.gateway.dialects.body import body_of
    from twinline.gateway.dialects.messages_types import MessagesRequest
    from twinline.gateway.dialects.responses_types import ResponsesRequest
    from twinline.gateway.errors import ApiError
    from twinline.gateway.sampling import ignored, plan, room
    from twinline.gateway.served import ModelText
    from twinline.gateway.text.reasoning import around_answer
    from twinline.gateway.text.template import ChatTemplate
    from twinline.gateway.tools import tool_use

    text = ModelText.load(TINY)
    spoken = [text.template, *(ChatTemplate({"default": each}, {"bos_token": ""}) for each in TEMPLATES.values())]
    models = [
        SimpleNamespace(
            name="m", tokenizer=text.tokenizer, template=template, calls=template and template.calls,
            max_model_len=1024, defaults=text.defaults, vocab_size=512,
        )
        for template in spoken
    ]  # fmt: skip

    def asked(request: Any, served: Any, rendered: str, prompt: list[int], calls: Any = None) -> None:
        most, about = room(len(prompt), request.max_tokens, served, "messages"), around_answer(rendered)
        plan(request, served, request_id="r", max_tokens=max(1, most), logprobs=None, around_answer=about, calls=calls)
        ignored(request)

    def chats(request: Any, served: Any) -> None:
        chat.check(request, served)
        held = partial(tool_use(request, served.calls).held, served.calls)
        asked(request, served, *at_once(chat.prompt_of(request, served, 0)), held)
        msgspec.json.decode(body_of(request))

    def completes(request: Any, served: Any) -> None:
        completions._check(request)
        for prompt in completions._encode(completions._given(request, served), served, request):
            asked(request, served, "", prompt.ids)

    def embeds(request: Any, served: Any) -> None:
        inputs = [embeddings._encoded(item, served) for item in embeddings._given(request.input, served)]
        embeddings._check_lengths(inputs, served)
        assert [item for share in embeddings.shares(inputs) for item in share] == inputs

    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": "\\u6771"}'}}
    said = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "1", "tool_call_id": "1"}]  # fmt: skip
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    shared = {"model": "m", "max_tokens": 2, "stop": ["a"], "logit_bias": {"5": 1}, "stop_token_ids": [3]}
    used = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [
        {"type": "tool_use", "id": "1", "name": "weather", "input": {"a": 1}}]}]  # fmt: skip
    called = {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"}
    items = [{"role": "user", "content": "Hi"}, called]
    doors: list[tuple[Any, Callable[[Any, Any], None], Any]] = [
        (ChatRequest, chats, {**shared, "messages": said, "tools": [{"type": "function", "function": function}],
                              "chat_template_kwargs": {"thinking": True}}),
        (CompletionRequest, completes, {**shared, "prompt": ["a"], "echo": True, "response_format": schema}),
        (MessagesRequest, lambda request, served: chats(messages_in.to_chat(request), served),
         {"model": "m", "max_tokens": 2, "messages": used, "tools": [{"name": "weather", "input_schema": {}}],
          "tool_choice": {"type": "any"}, "thinking": {"type": "disabled"}}),
        (ResponsesRequest, lambda request, served: chats(responses_in.to_chat(request), served),
         {"model": "m", "input": items, "tools": [{"type": "function", **function}], "reasoning": {"effort": "low"}}),
        (embeddings.EmbeddingsRequest, embeds, {"model": "m", "input": ["a", "b"], "dimensions": 2, "user": "u"}),
    ]  # fmt: skip
    decoders = [msgspec.json.Decoder(shape) for shape, _, _ in doors]

    def one(given: Given) -> None:
        which, served = given.number(len(doors) - 1), given.one_of(models)
        body = given.altered([doors[which][2]])
        status = 400
        try:
            request = exchange.decode(decoders[which], body)
            if which < 2:
                with contextlib.suppress(ValueError):
                    order.text_source(body, which == 0)
            doors[which][1](request, served)
        except ApiError as error:
            status = error.status if error.body() else 500
        assert 400 <= status < 500

    return [body for _, _, body in doors], one


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits")
