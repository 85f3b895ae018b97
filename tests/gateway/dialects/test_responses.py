"""OpenAI's Responses door, by its own client as users have it and by hand."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import openai
import pytest
from tests.gateway.harness import MODEL, Gateway
from tests.lines.line_double import Script

from twinline.gateway.dialects.body import body_of
from twinline.gateway.dialects.responses_in import to_chat
from twinline.gateway.dialects.responses_out import Streamed, Whole
from twinline.gateway.dialects.responses_types import ResponseOut, ResponsesRequest
from twinline.gateway.transcript import Piece


@pytest.fixture
def client(door: Gateway) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, http_client=http)


def post(door: Gateway, **fields: Any) -> httpx.Response:
    return door.client.post("/v1/responses", json={"model": MODEL, "input": "hi", **fields})


def request(**fields: Any) -> ResponsesRequest:
    return msgspec.convert({"model": "m", "input": "hi", **fields}, ResponsesRequest)


def told(response: Any) -> list[tuple[str, str]]:
    return [(item.type, item.content[0].text) for item in response.output]


def test_whole_and_streamed_are_the_same_response(door: Gateway, client: openai.OpenAI) -> None:
    tokens = door.says("Think: 你.</think>\n\nHello 👋 you", delay=0.001)
    answer = client.responses.create(model=MODEL, input="hi", instructions="Be brief.", max_output_tokens=99)
    assert answer.output_text == "Hello 👋 you" and answer.status == "completed"
    assert told(answer) == [("reasoning", "Think: 你."), ("message", "Hello 👋 you")]
    usage = answer.usage
    assert usage is not None and usage.input_tokens == len(door.asked()["prompt"])
    assert (usage.output_tokens, usage.input_tokens_details.cached_tokens) == (len(tokens), 3)
    thought = len(door.tokenizer.encode("Think: 你.</think>", special=False))
    assert usage.output_tokens_details.reasoning_tokens == thought < len(tokens)
    assert (answer.instructions, answer.max_output_tokens, answer.tool_choice) == ("Be brief.", 99, "auto")
    with client.responses.stream(model=MODEL, input="hi", instructions="Be brief.", max_output_tokens=99) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert told(final) == told(answer) and final.usage == usage and final.status == "completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    for kind in ("output_item", "content_part"):
        assert kinds.count(f"response.{kind}.added") == kinds.count(f"response.{kind}.done") == 2
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == "Hello 👋 you" and len(texts) > 3
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "Think: 你."


def test_an_answer_that_is_cut_is_incomplete(door: Gateway, client: openai.OpenAI) -> None:
    tokens = door.says("Hm</think>one two three")
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=len(tokens) - 4)
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in answer.output] == ["completed", "incomplete"]  # type: ignore[union-attr]
    *_, last = client.responses.create(model=MODEL, input="hi", max_output_tokens=len(tokens) - 4, stream=True)
    assert last.type == "response.incomplete" and told(last.response) == told(answer)


def test_what_came_back_goes_in_again(door: Gateway, client: openai.OpenAI) -> None:
    """As clients do who keep the conversation themselves: the output's items are the next input's."""
    door.says("Hm</think>yes")
    first = client.responses.create(model=MODEL, input="hi")
    again: Any = [{"role": "user", "content": "hi"}, *first.output, {"role": "user", "content": "and?"}]
    client.responses.create(model=MODEL, input=again)
    shown = door.tokenizer.decode(door.asked()["prompt"], skip_special=False)
    assert shown.endswith("<｜User｜>and?<｜Assistant｜><think>\n") and "yes" in shown


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_comes_back_by_its_encrypted_content(door: Gateway, client: openai.OpenAI, stream: bool) -> None:
    """As the AI SDK sends it: without its text, which it does not keep."""
    door.says("Hm 你.</think>yes")
    asked: Any = {"model": MODEL, "input": "hi", "include": ["reasoning.encrypted_content"]}
    if stream:
        with client.responses.stream(**asked) as events:
            done = [event.item for event in events if event.type == "response.output_item.done"]
            answer = events.get_final_response()
        assert done[0] == answer.output[0]
    else:
        answer = client.responses.create(**asked)
    item = answer.output[0]
    assert item.type == "reasoning" and item.encrypted_content
    kept = {"type": "reasoning", "id": item.id, "summary": [], "encrypted_content": item.encrypted_content}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}
    (message,) = to_chat(request(input=[kept, said])).messages
    assert message.reasoning_content == "Hm 你."
    for other in ("gAAAAB", "twinline:?", "twinline:/w=="):
        (message,) = to_chat(request(input=[kept | {"encrypted_content": other}, said])).messages
        assert message.reasoning_content is None
    assert "warning" not in post(door, include=asked["include"]).headers
    assert "encrypted_content" not in post(door).text


def test_what_a_chats_request_becomes() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a":1}'}
    items: Any = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        call,
        {**call, "call_id": "2"},
        {"type": "function_call_output", "call_id": "1", "output": "r"},
    ]
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    asked = request(
        input=items, instructions="S", max_output_tokens=5, tools=[{"type": "function", **function}],
        tool_choice={"type": "function", "name": "f"}, reasoning={"effort": "low"}, parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    )  # fmt: skip
    chat = json.loads(body_of(to_chat(asked)))
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}} for name in ("1", "2")]
    assert chat == {
        "model": "m", "max_tokens": 5, "reasoning_effort": "low", "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}
        },
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "developer", "content": "D"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {
                "role": "assistant", "content": [{"type": "text", "text": "a"}], "reasoning_content": "hm",
                "tool_calls": calls,
            },
            {"role": "tool", "content": "r", "tool_call_id": "1"},
        ],
    }  # fmt: skip


def test_reasoning_without_an_answer_is_not_the_next_ones() -> None:
    """An answer that was cut inside its reasoning comes back as that alone."""
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm"}]}
    asked = [{"role": "user", "content": "q"}, thought, {"role": "user", "content": "so?"}]
    said = [{**thought, "content": [{"type": "reasoning_text", "text": "Ah"}]}, {"role": "assistant", "content": "4"}]
    messages = to_chat(request(input=[*asked, *said, {"role": "user", "content": "why?"}])).messages
    assert [(message.role, message.content, message.reasoning_content) for message in messages] == [
        ("user", "q", None),
        ("assistant", "", "Hm"),
        ("user", "so?", None),
        ("assistant", "4", "Ah"),
        ("user", "why?", None),
    ]


def test_functions_of_a_namespace_have_one_name_for_the_model_and_two_for_the_client() -> None:
    tools = [{"type": "namespace", "name": "crm", "tools": [{"type": "function", "name": "f"}]}, {"type": "web_search"}]
    call = {"type": "function_call", "call_id": "1", "namespace": "crm", "name": "f", "arguments": "{}"}
    asked = request(tools=tools, input=[call, {"type": "function_call_output", "call_id": "1", "output": "r"}])
    chat = to_chat(asked)
    assert chat.tools == [{"type": "function", "function": {"name": "crm__f"}}]
    assert chat.messages[0].tool_calls is not None
    assert chat.messages[0].tool_calls[0]["function"]["name"] == "crm__f"
    made = {"index": 0, "id": "1", "function": {"name": "crm__f", "arguments": "{}"}}
    piece = Piece(0, [], [1], None, None, "tool_calls", tool_calls=[made])
    whole, streamed = Whole(asked, "r"), Streamed(asked, "r")
    whole.news(piece)
    (item,) = json.loads(whole.end(()))["output"]
    assert {name: item[name] for name in call} == call
    lines = [
        line for line in (streamed.news(piece) + streamed.end(())).decode().split("\n") if line.startswith("data: ")
    ]
    events = [json.loads(line[6:]) for line in lines]
    assert all("crm__f" not in json.dumps(event) for event in events)
    assert [event["name"] for event in events if event["type"].endswith("arguments.done")] == ["f"]


def test_a_picture_that_a_tool_gave_does_not_end_an_agents_run() -> None:
    output = [{"type": "input_image", "image_url": "x"}, {"type": "input_text", "text": "t"}, {"type": "input_file"}]
    item = {"type": "function_call_output", "call_id": "1", "output": output}
    chat = json.loads(body_of(to_chat(request(input=[item]))))
    assert [part["text"] for part in chat["messages"][0]["content"]] == [
        "[image left out: this model reads text only]",
        "t",
        "[file left out: this model reads text only]",
    ]


def test_calls_are_items_whole_and_streamed() -> None:
    pieces = [
        Piece(0, [("content", "Let me see.")], [1]),
        Piece(0, [], [2], tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}}]),
        Piece(0, [], [3], None, None, "tool_calls", tool_calls=[{"index": 0, "function": {"arguments": '":1}'}}]),
    ]
    whole, streamed = Whole(request(), "r"), Streamed(request(), "r")
    data = b"".join(streamed.news(piece) for piece in pieces) + streamed.end(())
    for piece in pieces:
        assert whole.news(piece) == b""
    answer = json.loads(whole.end(()))
    assert answer["output"][1] == {
        "type": "function_call", "id": "fc_r_1", "status": "completed", "call_id": "c", "name": "f",
        "arguments": '{"a":1}',
    }  # fmt: skip
    events = [json.loads(event.partition(b"data: ")[2]) for event in data.split(b"\n\n")[:-1]]
    assert [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"] == ['{"a', '":1}']
    (done,) = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert (done["arguments"], done["output_index"]) == ('{"a":1}', 1)
    assert events[-1]["response"]["output"] == answer["output"]


def test_an_answer_is_what_its_type_says(door: Gateway) -> None:
    door.says("Hm</think>x")
    body = post(door, reasoning={"effort": "low"}, metadata={"a": "b"}).content
    assert msgspec.to_builtins(msgspec.json.decode(body, type=ResponseOut)) == json.loads(body)


def test_errors_are_the_clients_own(door: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-9", input="hi")
    door.double.script = lambda request: Script(list(range(10, 30)), fault="reset", fault_after=2, delay=0.01)
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="could not be continued"):
        seen.extend(client.responses.create(model=MODEL, input="hi", stream=True))
    assert seen[-1].type == "response.failed" and seen[-1].response.status == "failed"
    assert "could not be continued" in seen[-1].response.error.message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not stored"),
        ({"conversation": "c"}, "conversation", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"include": ["message.output_text.logprobs"]}, "include", "/v1/chat/completions"),
        ({"input": []}, "input", "empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "the item itself"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "computer_call"),
        ({"input": [{"role": "user"}]}, "input[0].content", "content"),
        ({"input": [{"content": "x"}]}, "input[0].role", "role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "only text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0]", "have a text"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output", "output"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type", "functions"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0]", "list of tools"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [5]}]}, "tools[0].tools[0]", "object"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]},
            "tools[0].tools[0].type",
            "custom",
        ),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "maybe"}, "tool_choice", "maybe"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "schema"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"temperature": -1}, "temperature", ">= 0"),
        ({"input": "word " * 500}, "input", "maximum context length"),
    ],
)
def test_what_cannot_be_done_is_said(door: Gateway, fields: dict[str, Any], param: str, words: str) -> None:
    response = post(door, **fields)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and words in error["message"], error
    assert not door.double.requests


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_line_refuses_is_named_as_the_client_called_it(door: Gateway, stream: bool) -> None:
    refusal = {"message": "no such schema", "param": "response_format"}
    door.double.script = lambda request: Script(fault="refuse", status=400, error=refusal)
    response = post(door, stream=stream)
    assert response.status_code == 400 and response.json()["error"]["param"] == "text.format"


def test_what_has_no_effect_is_told_by_a_header(door: Gateway) -> None:
    door.says("</think>x")
    given = post(
        door, store=True, truncation="auto", reasoning={"summary": "auto"}, text={"verbosity": "low"}, stream=True
    )
    told = '299 twinline "ignored: store, truncation, text.verbosity, reasoning.summary"'
    assert given.status_code == 200 and given.headers["warning"] == told
    given = post(door, tools=[{"type": "web_search_2025_08_26"}, {"type": "image_generation"}])
    told = '299 twinline "ignored: tools[0] (web_search), tools[1] (image_generation)"'
    assert given.status_code == 200 and given.headers["warning"] == told
    assert "warning" not in post(door, store=False, truncation="disabled").headers
