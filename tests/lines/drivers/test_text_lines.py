"""Lines without token ids: what of a client's request they are given, and how their answers are read."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.lines.drivers.replay import Replay, ask, body, deltas, said, whole

from twinline.lines.client import LineClient
from twinline.lines.drivers import driver
from twinline.lines.drivers.openai import read_text
from twinline.lines.protocol import LineBroken, TextSource
from twinline.lines.spec import LineSpec
from twinline.lines.wire import EventLines, Usage

OPENAI, OLLAMA = driver("openai"), driver("ollama")
REMOTE = LineSpec(name="a", model="chat", engine="openai", url="https://api.example.com/v1", upstream="big-model")
LOCAL = LineSpec(name="b", model="chat", engine="ollama", weights="qwen3:8b", context=8192)
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def remote(**options: Any) -> LineSpec:
    return LineSpec(name="a", model="chat", engine="openai", url="https://api.example.com/v1", options=options)


def local(**options: Any) -> LineSpec:
    return LineSpec(name="b", model="chat", engine="ollama", weights="qwen3:8b", options=options)


def chat(shown: str = "", **fields: Any) -> TextSource:
    return TextSource({"model": "chat", "messages": MESSAGES, **fields}, True, shown)


# OpenAI.


def event(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


def test_a_remotes_chunks_are_read() -> None:
    first = read_text(
        event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    )
    assert first is not None and (first.text, first.finish_reason) == ("", None)
    word = read_text(event(choices=[{"index": 0, "delta": {"content": "天空"}}]))
    assert word is not None and word.text == "天空"
    refused = read_text(event(choices=[{"delta": {"content": None, "refusal": "No."}, "finish_reason": None}]))
    assert refused is not None and refused.text == "No."
    for name in ("reasoning_content", "reasoning"):
        thought = read_text(event(choices=[{"delta": {name: "hm"}, "finish_reason": None}]))
        assert thought is not None and (thought.reasoning, thought.text) == ("hm", "")
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    called = read_text(event(choices=[{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]))
    assert called is not None and (called.tool_calls, called.finish_reason) == ([call], "tool_calls")
    plain = read_text(event(choices=[{"index": 0, "text": "so", "finish_reason": "length"}]))
    assert plain is not None and (plain.text, plain.finish_reason) == ("so", "length")


@pytest.mark.parametrize("step", [0, 1, 100])
def test_a_real_servers_stream_is_read(step: int) -> None:
    """What llama-server's own OpenAI endpoints sent."""
    dialect = OPENAI.dialect(REMOTE)
    answer = whole(dialect, ask(), body("openai/chat.http"), step)
    assert answer.text == "12+30\n2+0+0=02\n1+3+0=04\n=42\n</think>\n\n42"
    assert (answer.finish_reason, answer.usage, answer.tool_calls) == ("stop", Usage(16, 33, 2), None)
    plain = whole(dialect, ask(), body("openai/completion.http"), step)
    assert (plain.text, plain.finish_reason, plain.usage) == ("数" * 5, "length", Usage(3, 5, 1))


def test_usage_comes_in_every_form_that_remotes_have() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    ends = [
        ({**usage, "prompt_tokens_details": {"cached_tokens": 5}}, 5),
        ({**usage, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 3}, 6),
        (usage, None),
    ]
    for said_so, cached in ends:
        delta = read_text(event(choices=[], usage=said_so))
        assert delta is not None and delta.usage == Usage(9, 4, cached)
    assert read_text(event(id="x", choices=[])) is None


def test_what_is_null_or_empty_in_a_remotes_stream_says_nothing() -> None:
    assert read_text(b"null") is None and read_text(event(choices=None)) is None
    ended = read_text(event(choices=None, usage={"prompt_tokens": None, "completion_tokens": None}))
    assert ended is not None and ended.usage == Usage(0, 0)
    stream = b'data: \n\n: ping\n\ndata:\n\nevent: ping\r\ndata: {"choices":[{"delta":{"content":"so"}}]}\r\n\r\n'
    assert [payload[:1] for payload in EventLines().feed(stream)] == [b"{"]
    assert EventLines().feed(b"data: \n\n") == []


def test_content_in_parts_is_text_and_reasoning() -> None:
    """As Mistral's API gives that of models that think."""
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm, "}, {"type": "text", "text": "so"}]}]
    first = read_text(event(choices=[{"index": 0, "delta": {"content": thought}, "finish_reason": None}]))
    assert first is not None and (first.reasoning, first.text) == ("hm, so", "")
    both = [*thought, {"type": "text", "text": "It is"}, {"type": "reference", "reference_ids": [1]}]
    second = read_text(event(choices=[{"index": 0, "delta": {"content": both}}]))
    assert second is not None and (second.reasoning, second.text) == ("hm, so", "It is")
    with pytest.raises(ValueError, match="no text"):
        read_text(event(choices=[{"delta": {"content": [{"type": "text", "text": 5}]}}]))


def called(index: int | None, name: str | None, arguments: object, call_id: str | None = None) -> dict[str, Any]:
    call = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return call if index is not None else {key: value for key, value in call.items() if key != "index"}


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        # OpenAI
        ([called(0, "f", "", "a"), called(0, None, '{"x":'), called(0, None, "1}"), called(1, "g", "{}", "b")],
         [(0, '{"x":1}'), (1, "{}")]),
        # Gemini's, which calls all of them 0, or nothing
        ([called(0, "f", '{"x":1}', "a"), called(0, "f", '{"x":2}', "b")], [(0, '{"x":1}'), (1, '{"x":2}')]),
        ([called(None, "f", '{"x":1}', "a"), called(None, "f", '{"x":2}', "b")], [(0, '{"x":1}'), (1, '{"x":2}')]),
        ([called(0, "f", '{"x":1}', ""), called(0, "f", '{"x":2}', "")], [(0, '{"x":1}'), (1, '{"x":2}')]),
        ([called(0, "f", ""), called(0, "f", "{"), called(0, "", "}")], [(0, "{}")]),
        # an id anew with each fragment, or the same id and name
        ([called(0, "f", "", "a"), called(0, None, "{", "b"), called(0, "", "}", "c")], [(0, "{}")]),
        ([called(3, "f", "{", "a"), called(3, "f", "}", "a")], [(0, "{}")]),
        # arguments as an object
        ([called(0, "f", {"x": 1}, "a")], [(0, '{"x":1}')]),
    ],
)  # fmt: skip
def test_each_of_a_remotes_tool_calls_has_its_own_number(
    fragments: list[dict[str, Any]], expected: list[tuple[int, str]]
) -> None:
    read = OPENAI.dialect(REMOTE).reader(ask())
    arguments: dict[int, str] = {}
    for fragment in fragments:
        delta = read(event(choices=[{"delta": {"tool_calls": [fragment]}}]))
        assert delta is not None
        for call in delta.tool_calls or ():
            arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    assert list(arguments.items()) == expected


@pytest.mark.parametrize("call", [{"index": [0], "function": {"name": "f"}}, {"index": 0, "function": "f"}])
def test_what_is_no_tool_call_breaks_the_answer(call: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tool call"):
        OPENAI.dialect(REMOTE).reader(ask())(event(choices=[{"delta": {"tool_calls": [call]}}]))


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [({"message": "overloaded", "code": "busy"}, "overloaded", "busy"), ("plain words", "plain words", None),
     ({"message": "limit", "code": 429}, "limit", "429")],
)  # fmt: skip
def test_errors_inside_a_remotes_stream_break_it(error: object, words: str, code: str | None) -> None:
    with pytest.raises(LineBroken, match=words) as broken:
        read_text(event(error=error))
    assert broken.value.code == code


def test_a_remote_is_given_the_clients_own_words_and_no_more() -> None:
    asked_for = chat(
        temperature=0.3, tools=[{"type": "function"}], n=2, top_k=4, logprobs=True, stream=False, user=None
    )
    path, asked = said(OPENAI.dialect(REMOTE), ask(model="big-model"), asked_for)
    assert path == "/chat/completions"
    assert asked == {
        "model": "big-model", "messages": MESSAGES, "temperature": 0.3, "tools": [{"type": "function"}],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_a_remote_is_given_more_where_the_fleet_says_so() -> None:
    dialect = OPENAI.dialect(remote(pass_fields=["top_k"], extra_body={"thinking": {"type": "disabled"}}))
    _, asked = said(dialect, ask(), chat(top_k=4))
    assert (asked["top_k"], asked["thinking"]) == (4, {"type": "disabled"})


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://a.example", "/v1/chat/completions"),
        ("https://a.example/v1/", "/chat/completions"),
        ("https://a.example/api/paas/v4", "/chat/completions"),
        ("https://a.example/openai", "/v1/chat/completions"),
    ],
)
def test_the_version_in_a_url_is_not_said_twice(url: str, path: str) -> None:
    spec = LineSpec(name="a", model="m", engine="openai", url=url)
    assert said(OPENAI.dialect(spec), ask(), chat())[0] == path


def test_an_answer_goes_on_at_a_remote_only_where_the_fleet_says_how() -> None:
    dialect = OPENAI.dialect(REMOTE)
    assert "options.continuation" in (dialect.carries(ask()) or "")
    with pytest.raises(ValueError, match=r"options\.continuation"):
        dialect.encode(ask(), chat("The sky"))


@pytest.mark.parametrize(
    ("how", "fields", "added"),
    [
        ("prefill", {}, {}),
        ("prefix", {}, {"prefix": True}),
        ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": False}, {}),
    ],
)
def test_how_an_answer_goes_on_at_a_remote(how: str, fields: dict[str, Any], added: dict[str, Any]) -> None:
    dialect = OPENAI.dialect(remote(continuation=how))
    request = ask(output_prefix_ids=[1, 2, 3], max_tokens=10)
    assert dialect.carries(request) is None
    source = msgspec.structs.replace(chat("The sky", max_tokens=10, seed=5), shown_tokens=3)
    _, asked = said(dialect, request, source)
    assert asked["messages"] == [*MESSAGES, {"role": "assistant", "content": "The sky", **added}]
    assert source.body["messages"] == MESSAGES
    assert asked["max_tokens"] == 7
    assert asked["seed"] != 5
    assert fields.items() <= asked.items()
    _, plain = said(dialect, request, TextSource({"prompt": "Once"}, False, " upon"))
    assert plain["prompt"] == "Once upon"
    assert "continue_final_message" not in plain


@pytest.mark.parametrize("field", [True, False], ids=["vllm's field", "deepseek's mark"])
def test_a_client_begins_the_answer_itself(field: bool) -> None:
    """A remote is told in its own way, or not asked; an answer that was moved goes on in the same message."""
    begun = {"role": "assistant", "content": "The sky"} | ({} if field else {"prefix": True})
    body = {"messages": [*MESSAGES, begun]} | ({"continue_final_message": True} if field else {})
    for dialect in (OPENAI.dialect(REMOTE), OLLAMA.dialect(LOCAL)):
        with pytest.raises(ValueError, match=r"options\.continuation"):
            dialect.encode(ask(), TextSource(body, True))
    for shown in ("", " is"):
        _, asked = said(OPENAI.dialect(remote(continuation="prefix")), ask(), TextSource(body, True, shown))
        assert asked["messages"] == [*MESSAGES, {"role": "assistant", "content": "The sky" + shown, "prefix": True}]
        _, asked = said(
            OPENAI.dialect(remote(continuation="continue_final_message")), ask(), TextSource(body, True, shown)
        )
        assert asked["continue_final_message"] and len(asked["messages"]) == len(MESSAGES) + 1
        _, asked = said(OLLAMA.dialect(local(continuation="prefill")), ask(), TextSource(body, True, shown))
        assert asked["messages"][len(MESSAGES) :] == [{"role": "assistant", "content": "The sky" + shown}]
    parts = {
        "messages": [*MESSAGES, {**begun, "content": [{"type": "text", "text": "The sky"}]}],
        "continue_final_message": True,
    }
    _, asked = said(OPENAI.dialect(remote(continuation="prefill")), ask(), TextSource(parts, True, " is"))
    assert [part["text"] for part in asked["messages"][-1]["content"]] == ["The sky is"]


def test_token_ids_cannot_be_put_to_a_text_line() -> None:
    for dialect in (OPENAI.dialect(REMOTE), OLLAMA.dialect(LOCAL)):
        with pytest.raises(ValueError, match="text only"):
            dialect.encode(ask(), None)
    assert "token_ids" not in OPENAI.features | OLLAMA.features


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": None}, "url:"),
        ({"weights": "x"}, "weights:"),
        ({"options": {"threads": 2}}, "no option 'threads'"),
        ({"options": {"continuation": "hope"}}, "'hope' is not one of"),
        ({"options": {"pass_fields": "top_k"}}, "pass_fields"),
        ({"options": {"extra_body": 3}}, "extra_body"),
        ({"container": "image"}, "container:"),
    ],
)
def test_a_remote_line_refuses_what_it_cannot_obey(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OPENAI.check(LineSpec(**{"name": "a", "model": "m", "engine": "openai", "url": "https://a.example"} | fields))
    OPENAI.check(REMOTE)


# Ollama.


@pytest.mark.parametrize("step", [0, 1, 64])
def test_ollamas_chat_is_read(step: int) -> None:
    answer = whole(OLLAMA.dialect(LOCAL), ask(), body("ollama/chat.ndjson"), step)
    assert (answer.reasoning, answer.text) == ("A colour question.", "天空 is blue.")
    assert (answer.finish_reason, answer.usage, answer.tokens) == ("stop", Usage(26, 9), [])


@pytest.mark.parametrize("prompt", ["", [1, 2], None])
def test_ollama_is_not_given_a_prompt_that_it_would_not_answer(prompt: object) -> None:
    """It takes an empty one as a wish to have the model loaded; a model with a token of its own at the beginning of a
    text goes on after it elsewhere."""
    with pytest.raises(ValueError, match="prompt: Ollama takes one text"):
        OLLAMA.dialect(LOCAL).encode(ask(), TextSource({"prompt": prompt}, False))


def test_ollamas_completion_is_read_over_a_socket() -> None:
    async def read() -> tuple[str, str | None, Any]:
        server = Replay({"/api/generate": "ollama/generate.http"})
        async with server as url:
            source = TextSource({"prompt": "It is"}, False)
            got = [delta async for delta in LineClient(url, OLLAMA.dialect(LOCAL)).stream(ask(), source)]
        return "".join(delta.text for delta in got), got[-1].finish_reason, server.asked[0][1]

    text, finish, asked = asyncio.run(read())
    assert (text, finish) == ("The end", "length")
    assert (asked["model"], asked["prompt"], asked["raw"], asked["truncate"]) == ("qwen3:8b", "It is", True, False)


def test_ollamas_tool_calls_become_openais() -> None:
    found = deltas(OLLAMA.dialect(LOCAL), ask(), body("ollama/tools.ndjson"))
    calls = [call for delta in found for call in delta.tool_calls or []]
    assert [(call["index"], call["id"], call["function"]["name"]) for call in calls] == [
        (0, "call_a1", "get_weather"),
        (1, "call_1", "now"),
    ]
    assert msgspec.json.decode(calls[0]["function"]["arguments"]) == {"city": "Tōkyō", "days": 2}
    assert found[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(("name", "words"), [("error", "while running the model"), ("cut", "no reason")])
def test_an_answer_that_ollama_breaks_off_is_no_clean_end(name: str, words: str) -> None:
    with pytest.raises(LineBroken, match=words):
        deltas(OLLAMA.dialect(LOCAL), ask(), body(f"ollama/{name}.ndjson"))


def test_a_request_in_ollamas_words() -> None:
    history = [
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is this?"},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm",
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]  # fmt: skip
    source = TextSource(
        {"messages": history, "max_tokens": 6, "stop": "END", "reasoning_effort": "low",
         "tools": [{"type": "function"}],
         "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}, True,
    )  # fmt: skip
    path, asked = said(OLLAMA.dialect(LOCAL), ask(top_k=7, temperature=0.5), source)
    assert (path, asked["model"]) == ("/api/chat", "qwen3:8b")
    assert asked["messages"] == [
        {"role": "user", "content": "What is this?", "images": ["AAAA"]},
        {"role": "assistant", "content": "", "thinking": "hm",
         "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "a cat", "tool_call_id": "c1", "tool_name": "look"},
    ]  # fmt: skip
    options = asked["options"]
    assert (options["top_k"], options["num_predict"], options["num_ctx"], options["stop"]) == (7, 6, 8192, ["END"])
    assert (asked["format"], asked["think"], asked["truncate"], asked["shift"]) == (
        {"type": "object"},
        "low",
        False,
        False,
    )
    assert asked["tools"] == [{"type": "function"}]


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "minimal"}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low", "thinking": {"type": "auto"}}, "low"),
        ({"reasoning_effort": "low", "thinking": {"type": "disabled"}}, False),
        ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, True),
        ({"reasoning_effort": "none", "enable_thinking": True}, True),
        ({"enable_thinking": False, "thinking": {"type": "enabled"}}, False),
        ({"enable_thinking": True, "reasoning_effort": "high"}, "high"),
        ({"enable_thinking": None, "thinking": None, "reasoning_effort": "none"}, False),
    ],
)
def test_ollama_is_told_whether_to_reason(fields: dict[str, Any], think: object) -> None:
    assert said(OLLAMA.dialect(LOCAL), ask(), chat(**fields))[1].get("think") == think


def test_no_limit_is_sent_where_the_client_gave_none() -> None:
    _, asked = said(OLLAMA.dialect(LOCAL), ask(max_tokens=6), chat())
    assert "num_predict" not in asked["options"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": [{"type": "input_audio"}]}, "text and images"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}, "data: URLs"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "'f' are not JSON"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]},
            "neither text nor an object",
        ),
        ({"role": "assistant", "tool_calls": [{"id": ["c"], "function": {"name": "f"}}]}, "id is text"),
    ],
)
def test_what_ollama_has_no_place_for_is_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OLLAMA.dialect(LOCAL).encode(ask(), TextSource({"messages": [message]}, True))


def test_arguments_of_calls_may_be_text_or_an_object() -> None:
    for arguments in ({"a": 1}, '{"a": 1}'):
        message = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
        _, body = OLLAMA.dialect(LOCAL).encode(ask(), TextSource({"messages": [message]}, True))
        calls = msgspec.json.decode(body)["messages"][0]["tool_calls"]
        assert calls == [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]


def test_an_answer_goes_on_at_ollama_only_where_the_fleet_says_so() -> None:
    assert OLLAMA.dialect(LOCAL).carries(ask()) is not None
    dialect = OLLAMA.dialect(local(continuation="prefill"))
    assert dialect.carries(ask()) is None
    _, asked = said(dialect, ask(), chat("The sky"))
    assert asked["messages"][-1] == {"role": "assistant", "content": "The sky"}


def test_ollamas_command_line_is_its_environment() -> None:
    command = OLLAMA.command(LineSpec(name="b", model="m", engine="ollama", weights="q", context=99, slots=2), 9004)
    assert list(command.argv) == ["ollama", "serve"]
    assert command.env["OLLAMA_HOST"] == "127.0.0.1:9004"
    assert (command.env["OLLAMA_CONTEXT_LENGTH"], command.env["OLLAMA_NUM_PARALLEL"]) == ("99", "2")
    with pytest.raises(ValueError, match="no option 'num_gpu'"):
        OLLAMA.check(local(num_gpu=1))


def test_ollamas_counts_and_calls_may_be_missing() -> None:
    read = OLLAMA.dialect(LOCAL).reader(ask())
    call = {"function": {"name": "now", "arguments": None}}
    first = read(event(message={"content": "", "tool_calls": [call]}, done=False))
    assert first is not None and first.tool_calls and first.tool_calls[0]["function"]["arguments"] == "{}"
    last = read(event(done=True, done_reason="stop", prompt_eval_count=9, prompt_eval_cached_count=8, eval_count=2))
    assert last is not None and last.usage == Usage(9, 2, 8)
