"""What goes wrong, on the client's side and on the line's: always OpenAI's shape, and the gateway goes on."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from typing import Any

import pytest
from tests.gateway.harness import MAX_BODY, MAX_MODEL_LEN, MODEL, Gateway
from tests.lines.line_double import Script

from twinline.gateway.api_types import NOT_SUPPORTED
from twinline.gateway.sampling import MOST_CHARACTERS
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines import client
from twinline.lines.state import LineState

CHAT = "/v1/chat/completions"


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),  # tiny-r1's template refuses it
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"stop_token_ids": [1024]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1024": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": {}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_grammar": ""}, "guided_grammar"),
        ({"guided_regex": 3}, "guided_regex"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        *[({name: {}}, name) for name in NOT_SUPPORTED],
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "messages"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_a_wrong_field_is_named(door: Gateway, fields: dict[str, Any], param: str) -> None:
    error = error_of(door.chat(**fields), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not door.double.requests


def test_null_is_the_default_everywhere(door: Gateway) -> None:
    names = [
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logprobs",
        "stream",
        "max_tokens",
        "tools",
        "tool_choice",
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        *NOT_SUPPORTED,
    ]
    assert door.chat(**dict.fromkeys(names)).status_code == 200
    assert door.chat(tool_choice="auto", logits_processors=[]).status_code == 200


def test_what_is_not_supported_is_said_so(door: Gateway) -> None:
    for response in (door.chat(logits_processors=["a"]), door.complete(logits_processors=["a"])):
        error = error_of(response, 400)
        assert (error["code"], error["message"]) == ("unsupported_parameter", "logits_processors is not supported yet.")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xef\xbb\xbf{}",
        b'{"model": "\xff"}',
        b'{"model": "m", "unknown": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b'{"model": "m", "temperature": 1e999}',
        b'{"model": "tiny-r1", "prompt": [' + b"9" * 10_000 + b"]}",
        b'{"model": "tiny-r1", "prompt": ' + b"[" * 100_000,
        b'{"chat_template_kwargs": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        bytes(range(256)),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_body_that_is_no_request(door: Gateway, path: str, body: bytes) -> None:
    error_of(door.client.post(path, content=body), 400)
    assert door.client.get("/health").status_code == 200


def test_unknown_models_paths_and_methods(door: Gateway) -> None:
    for response in (door.chat(model="gpt-9"), door.complete(model="gpt-9"), door.client.get("/v1/models/gpt/9")):
        error = error_of(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error_of(door.client.get("/v1/nothing"), 404)["code"] == "unknown_path"
    error_of(door.client.post("/v1/chat/completions/", json={}), 404)
    response = door.client.get(CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed" and response.headers["allow"] == "POST"
    error_of(door.client.delete("/health"), 405)


def test_a_body_too_large(door: Gateway) -> None:
    body = b'{"model": "' + b"x" * MAX_BODY + b'"}'
    assert error_of(door.client.post(CHAT, content=body), 413)["code"] == "body_too_large"
    pieces = iter([body[: MAX_BODY // 2]] * 4)  # without a length
    error_of(door.client.post(CHAT, content=pieces), 413)
    assert door.chat().status_code == 200


def test_a_body_that_is_compressed(door: Gateway) -> None:
    """The client is told so, not that its JSON is wrong."""
    body = gzip.compress(json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).encode())
    response = door.client.post(CHAT, content=body, headers={"content-encoding": "gzip"})
    assert "in the coding gzip" in error_of(response, 415)["message"]
    body = gzip.decompress(body)
    assert door.client.post(CHAT, content=body, headers={"content-encoding": "identity"}).status_code == 200


def test_too_long_for_the_context(door: Gateway) -> None:
    error = error_of(door.chat(max_tokens=MAX_MODEL_LEN), 400)
    assert error["code"] == "context_length_exceeded"
    prompt = len(door.tokenizer.encode("<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>\n", special=False))
    assert error["message"].startswith(f"This model's maximum context length is {MAX_MODEL_LEN} tokens, but ")
    assert f"lower max_tokens to {MAX_MODEL_LEN - prompt}" in error["message"]
    assert door.chat(max_tokens=MAX_MODEL_LEN - prompt).status_code == 200


def test_too_long_in_words_that_clients_read(door: Gateway) -> None:
    """By these words and numbers Claude Code asks for less or shortens the conversation, and LiteLLM and LangChain tell
    it from other errors."""

    def told(text: str) -> str:
        body = {"model": MODEL, "max_tokens": MAX_MODEL_LEN, "messages": [{"role": "user", "content": text}]}
        response = door.client.post("/v1/messages", json=body)
        assert response.status_code == 400
        return str(response.json()["error"]["message"])

    found = re.search(r"input length and `max_tokens` exceed context limit: (\d+) \+ (\d+) > (\d+)", told("hi"))
    assert found is not None and [int(number) for number in found.groups()][1:] == [MAX_MODEL_LEN] * 2
    found = re.search(r"prompt is too long: (\d+) tokens > (\d+) maximum", told("a " * MAX_MODEL_LEN))
    assert found is not None and int(found[1]) > int(found[2]) == MAX_MODEL_LEN - 1
    assert "prompt is too long" in told("a " * 200_000)


def test_a_text_that_cannot_fit_costs_no_tokenizing(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " " * (MOST_CHARACTERS * MAX_MODEL_LEN + 1)
    monkeypatch.setattr(Tokenizer, "encode", lambda *given, **how: pytest.fail("it was tokenized"))
    responses = [
        door.client.post(CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": text}]}),
        door.client.post("/v1/completions", json={"model": MODEL, "prompt": text}),
        door.client.post("/tokenize", json={"model": MODEL, "prompt": text}),
    ]
    for response in responses:
        error = error_of(response, 400)
        assert error["code"] == "context_length_exceeded" and "prompt is too long" in error["message"]


def test_more_biases_than_tokens(door: Gateway) -> None:
    bias = {str(token): 1 for token in range(door.tokenizer.vocab_size + 1)}
    assert "more than the model has" in error_of(door.chat(logit_bias=bias), 400)["message"]


def test_a_bad_timeout_header(door: Gateway) -> None:
    for value in ("soon", "-1", "nan", "inf"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        response = door.client.post(CHAT, json=body, headers={"X-Request-Timeout-S": value})
        assert error_of(response, 400)["param"] == "timeout_s"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_line(door: Gateway, stream: bool) -> None:
    door.double.script = lambda request: Script(fault="refuse", headers={"Retry-After": "3"})
    response = door.chat(stream=stream)
    error = error_of(response, 429)
    assert (error["type"], error["code"], response.headers["retry-after"]) == ("rate_limit_error", "queue_full", "3")
    assert 1 <= len(door.double.requests) <= 3  # it is not asked again and again


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (404, 503), (409, 503), (500, 503), (503, 503)])
def test_other_refusals_of_the_line(door: Gateway, status: int, expected: int) -> None:
    door.double.script = lambda request: Script(fault="refuse", status=status)
    assert "the queue is full" in error_of(door.chat(), expected)["message"]


def test_a_line_that_is_not_up(door: Gateway) -> None:
    life = door.line.life
    life.told(LineState.QUARANTINED, "it computed wrongly")
    try:
        for response in (door.chat(), door.chat(stream=True), door.complete()):
            assert "it computed wrongly" in error_of(response, 503)["message"]
        response = door.client.get("/health")
        assert response.status_code == 503 and "quarantined" in response.text
        assert 'line_up{line="double",model="tiny-r1"} 0.0' in door.client.get("/metrics").text
    finally:
        life.told(LineState.SERVING, "it was mended")
    assert door.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("fault", ["reset", "end", "bad_json", "in_band"])
def test_a_line_that_breaks(door: Gateway, fault: str) -> None:
    door.double.script = lambda request: Script(tokens=list(range(10, 30)), fault=fault, fault_after=2, delay=0.01)
    assert error_of(door.chat(), 502)["code"] == "cannot_continue"
    assert len(door.double.requests) == 4
    assert [len(request["output_prefix_ids"]) for request in door.double.requests] == [0, 2, 4, 6]
    response = door.complete(stream=True)
    assert response.status_code == 200
    *chunks, last = [json.loads(event[6:]) for event in response.text.strip().split("\n\n")]
    assert chunks and all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert last["error"]["code"] == "cannot_continue"
    door.double.script = lambda request: Script(fault=fault)
    assert error_of(door.chat(stream=True), 502)["code"] == "line_broken"


def test_the_deadline(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    door.double.script = lambda request: Script(finish="deadline")
    assert error_of(door.chat(), 504)["code"] == "deadline_exceeded"
    response = door.chat(stream=True)
    assert response.status_code == 200 and "[DONE]" not in response.text
    assert json.loads(response.text.strip().split("\n\n")[-1][6:])["error"]["code"] == "deadline_exceeded"
    monkeypatch.setattr(client, "DEADLINE_GRACE_SECONDS", 0.02)
    door.double.script = lambda request: Script(fault="hang", fault_after=1)
    assert error_of(door.chat(timeout_s=0.05), 504)["code"] == "deadline_exceeded"
    door.until(lambda: door.double.active == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("after", [0, 1])
def test_a_client_that_leaves_frees_the_line(door: Gateway, stream: bool, n: int, after: int) -> None:
    door.double.script = lambda request: Script(fault="hang", fault_after=after)
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": stream, "n": n}
    ).encode()
    host, port = door.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        door.until(lambda: door.double.active == n)
        if stream and after:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    door.until(lambda: door.double.active == 0)
    assert len(door.double.aborted) == n
    door.until(lambda: 'requests_running{endpoint="chat"} 0.0' in door.client.get("/metrics").text)


def test_half_a_request_is_no_request(door: Gateway) -> None:
    host, port = door.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
        time.sleep(0.02)
    assert door.chat().status_code == 200
