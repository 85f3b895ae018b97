"""Anthropic's door, by its own client as users have it and by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import pytest
from tests.gateway.harness import MODEL, Gateway
from tests.gateway.several import Several, run
from tests.lines.line_double import Script

from twinline.gateway.api_types import ContentPart
from twinline.gateway.dialects import messages_out
from twinline.gateway.dialects.body import body_of
from twinline.gateway.dialects.messages_in import to_chat
from twinline.gateway.dialects.messages_out import Streamed, Whole
from twinline.gateway.dialects.messages_types import ErrorOut, MessageOut, MessagesRequest
from twinline.gateway.transcript import Piece

HI: Any = [{"role": "user", "content": "hi"}]
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def client(door: Gateway) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    return anthropic.Anthropic(base_url=door.url, api_key="none", max_retries=0, http_client=http)


def post(door: Gateway, **fields: Any) -> httpx.Response:
    return door.client.post("/v1/messages", json={"model": MODEL, "max_tokens": 99, "messages": HI, **fields})


def said(message: Any) -> list[tuple[str, str]]:
    return [(block.type, getattr(block, "text", None) or block.thinking) for block in message.content]


def test_whole_and_streamed_are_the_same_message(door: Gateway, client: anthropic.Anthropic) -> None:
    tokens = door.says("Think: 你.</think>\n\nHello 👋 you", delay=0.001)
    ask: Any = {"model": MODEL, "max_tokens": 99, "messages": HI, "thinking": THINKING}
    answer = client.messages.create(**ask)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "Think: 你." and answer.content[1].text == "Hello 👋 you"  # type: ignore[union-attr]
    assert (answer.role, answer.type, answer.model, answer.stop_reason) == ("assistant", "message", MODEL, "end_turn")
    prompt = len(door.asked()["prompt"])
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (prompt - 3, 3, len(tokens))
    assert usage.output_tokens_details is not None
    thought = len(door.tokenizer.encode("Think: 你.</think>", special=False))
    assert usage.output_tokens_details.thinking_tokens == thought < len(tokens)
    assert answer._request_id and answer.id == f"msg_{answer._request_id}"
    with client.messages.stream(**ask) as stream:
        found = list(stream)
        final = stream.get_final_message()
    seen = [event.type for event in found]
    deltas = [event.delta.type for event in found if event.type == "content_block_delta" and event.index == 0]
    assert set(deltas[:-1]) == {"thinking_delta"} and deltas[-1] == "signature_delta"
    assert seen[0] == "message_start" and seen[-1] == "message_stop" and seen.count("content_block_stop") == 2
    assert said(final) == said(answer) and final.usage == answer.usage and final.stop_reason == "end_turn"


def test_what_was_not_asked_to_be_shown_is_not(door: Gateway, client: anthropic.Anthropic) -> None:
    tokens = door.says("Think.</think>Hello you")
    answer = client.messages.create(model=MODEL, max_tokens=99, messages=HI)
    assert [block.type for block in answer.content] == ["text"] and answer.usage.output_tokens == len(tokens)
    with client.messages.stream(model=MODEL, max_tokens=99, messages=HI) as stream:
        assert "".join(stream.text_stream) == "Hello you"
        assert said(stream.get_final_message()) == said(answer)


def test_a_stream_that_shows_nothing_for_long_says_that_it_goes_on(
    door: Gateway, client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden thinking takes minutes, and proxies take silence for the end."""
    door.says("Think and think.</think>Hello", delay=0.01)
    assert "event: ping" not in post(door, stream=True).text
    monkeypatch.setattr(messages_out, "PING_SECONDS", 0.0)
    kinds = re.findall(r"event: (\w+)", post(door, stream=True).text)
    assert kinds[:3] == ["message_start", "ping", "ping"] and "ping" not in kinds[kinds.index("content_block_start") :]
    with client.messages.stream(model=MODEL, max_tokens=99, messages=HI) as stream:
        assert "".join(stream.text_stream) == "Hello"


def test_why_it_stopped(door: Gateway, client: anthropic.Anthropic) -> None:
    tokens = door.says("</think>one two three")

    def ask(stream: bool, **fields: Any) -> Any:
        asked: Any = {"model": MODEL, "max_tokens": 99, "messages": HI, **fields}
        if not stream:
            return client.messages.create(**asked)
        with client.messages.stream(**asked) as events:
            return events.get_final_message()

    for stream in (False, True):
        short = ask(stream, max_tokens=len(tokens) - 4)
        assert (short.stop_reason, short.stop_sequence) == ("max_tokens", None)
        halted = ask(stream, stop_sequences=["zzz", " thr"])
        assert (halted.stop_reason, halted.stop_sequence) == ("stop_sequence", " thr")
        assert halted.content[0].text == "one two"


def test_the_prompt_is_the_chats(door: Gateway, client: anthropic.Anthropic) -> None:
    door.says("</think>x")
    system: Any = [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "T"}]
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "yes"}],
        },
        {"role": "user", "content": "and?"},
    ]
    client.messages.create(
        model=MODEL,
        max_tokens=7,
        messages=messages,
        system=system,
        extra_body={"temperature": 0.3, "top_p": 0.8, "top_k": 5},
    )
    asked = door.asked()
    assert (asked["max_tokens"], asked["temperature"], asked["top_p"], asked["top_k"]) == (7, 0.3, 0.8, 5)
    shown = door.tokenizer.decode(asked["prompt"], skip_special=False)
    assert shown.startswith("<｜begin▁of▁sentence｜>S\nT<｜User｜>hi<｜Assistant｜>")
    assert shown.endswith("<｜User｜>and?<｜Assistant｜><think>\n") and "yes" in shown
    counted = client.messages.count_tokens(model=MODEL, messages=messages, system=system)
    assert counted.input_tokens == len(asked["prompt"])


def test_an_answer_goes_on_from_the_assistants_last_message(door: Gateway, client: anthropic.Anthropic) -> None:
    door.says(" is 4")
    begun: Any = [*HI, {"role": "assistant", "content": "The answer"}]
    answer = client.messages.create(model=MODEL, max_tokens=9, messages=begun)
    assert answer.content[0].text == " is 4"  # type: ignore[union-attr]
    assert door.tokenizer.decode(door.asked()["prompt"], skip_special=False).endswith("The answer")


def test_what_a_chats_request_becomes() -> None:
    request: Any = {
        "model": "m", "max_tokens": 5, "system": "S", "thinking": {"type": "disabled"}, "stop_sequences": ["x"],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": "é"}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "so?"},
                ],
            },
        ],
    }  # fmt: skip
    chat = json.loads(body_of(to_chat(msgspec.convert(request, MessagesRequest))))
    function = {"name": "f", "arguments": '{"a":"é"}'}
    tool = {"name": "f", "parameters": {"type": "object"}, "description": "d"}
    assert chat == {
        "model": "m", "max_tokens": 5, "stop": ["x"], "reasoning_effort": "none", "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "required",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "content": [{"type": "text", "text": "r"}], "tool_call_id": "1"},
            {"role": "user", "content": [{"type": "text", "text": "so?"}]},
        ],
    }  # fmt: skip


def test_a_form_of_the_answer_by_its_newer_and_its_older_name() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "q"}], **fields}
        chat = to_chat(msgspec.convert(asked, MessagesRequest))
        assert chat.response_format is not None and chat.response_format.json_schema is not None
        assert chat.response_format.json_schema.schema == form["schema"]


@pytest.mark.parametrize("more", [[], [{"type": "text", "text": "You are an agent."}]])
def test_a_billing_header_is_no_part_of_the_prompt(more: list[Any]) -> None:
    """As Claude Code sends it, first of all and another for each first question."""
    header = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.c40; cc_entrypoint=cli;"}
    made, bare = (
        to_chat(msgspec.convert({"model": "m", "max_tokens": 1, "messages": HI, "system": system}, MessagesRequest))
        for system in ([header, *more], more or None)
    )
    assert made == bare and len(made.messages) == len(more) + 1


CALLS = [
    Piece(0, [("content", "Let me see.")], [1]),
    Piece(0, [], [2], tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}}]),
    Piece(0, [], [3], None, None, "tool_calls", tool_calls=[{"index": 0, "function": {"arguments": '":1}'}}]),
]


def test_calls_are_blocks_whole_and_streamed() -> None:
    whole, streamed = (made("msg_1", "m", 9, shows_thinking=True) for made in (Whole, Streamed))
    for piece in CALLS:
        assert whole.news(piece) == b""
    answer = json.loads(whole.end(()))
    assert answer["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
    ]
    assert answer["stop_reason"] == "tool_use"
    data = b"".join(streamed.news(piece) for piece in CALLS) + streamed.end(())
    events = [json.loads(event.partition(b"data: ")[2]) for event in data.split(b"\n\n")[:-1]]
    parts = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta" and e["index"] == 1]
    assert parts == ['{"a', '":1}'] and events[-2]["delta"]["stop_reason"] == "tool_use"
    for arguments in ("[1", "[" * 5000):
        broken, call = Whole("msg_1", "m", 9, shows_thinking=True), {"id": "c", "function": {"arguments": arguments}}
        broken.news(Piece(0, [], [], None, None, "tool_calls", tool_calls=[call]))
        assert json.loads(broken.end(()))["content"][0]["input"] == {"arguments": arguments}


def test_an_answer_is_what_its_type_says(door: Gateway) -> None:
    door.says("Hm</think>x")
    body = post(door, thinking=THINKING).content
    assert msgspec.to_builtins(msgspec.json.decode(body, type=MessageOut)) == json.loads(body)


def test_a_picture_that_a_tool_gave_does_not_end_an_agents_run() -> None:
    """It stays in the conversation: a refusal would be of every turn to come."""
    pictures = [{"type": "image", "source": {}}, {"type": "document", "source": {}}]
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a.png"}, *pictures]}
    asked = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": [result]}]}
    chat = to_chat(msgspec.convert(asked, MessagesRequest))
    assert [part.text for part in chat.messages[0].content or () if isinstance(part, ContentPart)] == [
        "a.png",
        "[image left out: this model reads text only]",
        "[document left out: this model reads text only]",
    ]


def test_errors_are_the_clients_own(door: Gateway, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="gpt-9", max_tokens=9, messages=HI)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    door.double.script = lambda request: Script(fault="refuse")
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(model=MODEL, max_tokens=9, messages=HI)
    door.double.script = lambda request: Script(list(range(10, 30)), fault="reset", fault_after=2, delay=0.01)
    door.renew()
    with pytest.raises(anthropic.APIStatusError, match="could not be continued"):
        list(client.messages.create(model=MODEL, max_tokens=9, messages=HI, stream=True, thinking=THINKING))
    for response in (post(door, max_tokens=0), door.client.get("/v1/messages"), door.client.post("/v1/messages/x")):
        said = msgspec.json.decode(response.content, type=ErrorOut)
        assert response.status_code in (400, 404, 405) and said.error.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "type image is not"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "type document is not"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "role user"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]}, "assistant"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ({"container": "c"}, "container is not supported"),
        ({"tools": [{"name": "web", "type": "web_search_20250305"}]}, "only Anthropic runs"),
        ({"tool_choice": {"type": "tool"}}, "needs a name"),
        ({"stop_sequences": [""]}, "stop string"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_cannot_be_done_is_said(door: Gateway, fields: dict[str, Any], words: str) -> None:
    response = post(door, **fields)
    error = response.json()
    assert response.status_code == 400 and error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error" and words in error["error"]["message"]
    assert error["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert not door.double.requests


def test_what_has_no_effect_is_told_by_a_header(door: Gateway) -> None:
    door.says("</think>x")
    given = post(door, metadata={"user_id": "u"}, service_tier="auto", stream=True)
    assert given.status_code == 200 and given.headers["warning"] == '299 twinline "ignored: metadata"'


def test_a_break_is_not_seen(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says("Hm 你.</think>The answer is 4", "b")
        made.doubles["a"].script = lambda request: Script(tokens, fault="reset", fault_after=9)
        asked = {"model": MODEL, "max_tokens": 99, "messages": HI, "thinking": THINKING, "stream": True}
        text = (await made.client.post("/v1/messages", json=asked)).text
        events = [json.loads(event.partition("data: ")[2]) for event in text.split("\n\n")[:-1]]
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        assert "".join(delta.get("thinking", "") for delta in deltas) == "Hm 你."
        assert "".join(delta.get("text", "") for delta in deltas) == "The answer is 4"
        assert [event["type"] for event in events].count("message_start") == 1
        assert len(made.asked("a")) == len(made.asked("b")) == 1

    run(tiny_folder, ["a", "b"], test)
