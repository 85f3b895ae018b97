"""Chat completions: what the line is asked, and what the client gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.harness import MAX_MODEL_LEN, MODEL, Gateway
from tests.lines.line_double import Script

from twinline.gateway import aside

THOUGHT = "It is easy.\n</think>"
REASONED = THOUGHT + "\n\nThe answer is 你好 4."


def events(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert event.startswith("data: ") and "\n" not in event
        found.append(event[6:])
    return [event if event == "[DONE]" else json.loads(event) for event in found]


def test_a_whole_answer(door: Gateway) -> None:
    tokens = door.says(REASONED)
    answer = door.chat().json()
    assert answer["object"] == "chat.completion" and answer["model"] == MODEL
    choice = answer["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": "The answer is 你好 4.",
        "reasoning_content": "It is easy.",
    }
    assert choice["finish_reason"] == "stop"
    prompt = len(door.asked()["prompt"])
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": len(tokens),
        "total_tokens": prompt + len(tokens),
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": len(door.tokenizer.encode(THOUGHT, special=False))},
    }


@pytest.mark.parametrize(
    ("text", "counted"),
    [(REASONED, "to the mark"), ("<think>\nIt goes on", "all"), ("It is easy.", "none"), ("Not </think> this", "none")],
)
def test_reasoning_tokens_are_told_of_which_there_are(door: Gateway, text: str, counted: str) -> None:
    open_prompt = counted == "to the mark"
    tokens = door.says(text)
    messages = [{"role": "user", "content": "q"}]
    if not open_prompt:  # the message that goes on is no reasoning: only a tag of the output's own begins some
        messages.append({"role": "assistant", "content": "So: "})
    fields = {"messages": messages, "continue_final_message": not open_prompt}
    for streams in (False, True):
        options = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
        answer = door.chat(**fields, **options, n=2)
        used = events(answer.text)[-2]["usage"] if streams else answer.json()["usage"]
        details = used.get("completion_tokens_details")
        each = {"to the mark": len(door.tokenizer.encode(THOUGHT, special=False)), "all": len(tokens), "none": 0}[
            counted
        ]
        assert details == ({"reasoning_tokens": 2 * each} if each else None)


def test_reasoning_tokens_end_where_other_ids_spell_its_end(door: Gateway) -> None:
    """At every door. As where `</think>` is no token of the vocabulary and its last sign is one with what follows."""

    def ids(text: str) -> list[int]:
        return door.tokenizer.encode(text, special=False)

    thought = [*ids("It is"), *ids(" easy"), *ids("</th"), *ids("ink>\n")]
    tokens = [*thought, *ids("42"), *door.tokenizer.eos_ids]
    assert not set(ids("</think>")) & set(tokens)
    door.double.script = lambda request: Script(tokens=tokens)
    answer = door.chat().json()
    assert answer["choices"][0]["message"]["content"] == "42"
    told = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len(thought) - len(ids("nk>\n")) < told <= len(thought)
    others = [
        door.client.post(f"/v1/{path}", json={"model": MODEL, **asked}).json()["usage"]
        for path, asked in (
            ("responses", {"input": "q"}),
            ("messages", {"messages": [{"role": "user", "content": "q"}], "max_tokens": 99}),
        )
    ]
    of_kind = [used["output_tokens_details"] for used in others]
    assert of_kind == [{"reasoning_tokens": told}, {"thinking_tokens": told}]


def test_the_line_gets_the_templates_prompt_and_defaults(door: Gateway) -> None:
    door.says("x")
    door.chat(
        messages=[{"role": "developer", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    )
    asked = door.asked()
    shown = door.tokenizer.decode(asked["prompt"], skip_special=False)
    assert shown == "<｜begin▁of▁sentence｜>S<｜User｜>hi<｜Assistant｜><think>\n"
    assert asked["max_tokens"] == MAX_MODEL_LEN - len(asked["prompt"])
    assert asked["stop_token_ids"] == sorted(door.tokenizer.eos_ids)
    assert (asked["model"], asked["temperature"], asked["logprobs"]) == ("m", 1.0, None)
    seed = asked["seed"]
    door.chat()
    assert 0 <= seed < 2**63 and door.asked()["seed"] != seed


def test_every_sampling_field_reaches_the_line(door: Gateway) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.1, "seed": 5, "logit_bias": {"7": -100}, "min_tokens": 2, "priority": -3,
        "timeout_s": 30,
    }  # fmt: skip
    assert door.chat(**fields, max_tokens=9, stop_token_ids=[20], ignore_eos=True).status_code == 200
    asked = door.asked()
    assert {name: asked[name] for name in fields} == fields
    assert (asked["max_tokens"], asked["stop_token_ids"], asked["ignore_eos"]) == (9, [20], True)
    door.chat(max_completion_tokens=4, max_tokens=9, top_k=-1, user="u", store=True, metadata={"a": "b"}, unknown=1)
    assert (door.asked()["max_tokens"], door.asked()["top_k"]) == (4, 0)
    door.client.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
        headers={"X-Request-Timeout-S": "2.5"},
    )
    assert door.asked()["timeout_s"] == 2.5


def test_a_stream_is_openais(door: Gateway) -> None:
    tokens = door.says(REASONED)
    response = door.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, finish, usage, done = events(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == len(tokens)
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "It is easy."
    assert "".join(delta.get("content", "") for delta in deltas) == "The answer is 你好 4."
    assert all(len(delta) == 1 for delta in deltas)
    assert {(c["id"], c["object"], c["usage"]) for c in [*chunks, finish]} == {
        (usage["id"], "chat.completion.chunk", None)
    }
    plain = events(door.chat(stream=True).text)
    assert all("usage" not in chunk for chunk in plain[:-1])


@pytest.mark.parametrize("per_chunk", [1, 3, 100])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_the_lines_work(door: Gateway, per_chunk: int, stream: bool) -> None:
    tokens = door.says("</think>one two three four" * 3, per_chunk=per_chunk, delay=0.002)
    response = door.chat(
        stop=["zzz", "o thr"], stream=stream, stream_options={"include_usage": True} if stream else None
    )
    if stream:
        *chunks, usage, _ = events(response.text)
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        usage = response.json()
        text = usage["choices"][0]["message"]["content"]
        finish = usage["choices"][0]["finish_reason"]
        assert usage["choices"][0]["stop_reason"] == "o thr"
    assert (text, finish) == ("one tw", "stop")
    used = usage["usage"]["completion_tokens"]
    through = door.tokenizer.decode(tokens[:used])
    assert "o thr" in through and "o thr" not in door.tokenizer.decode(tokens[: used - 1])
    door.until(lambda: door.double.active == 0)
    if per_chunk < 100:
        assert door.double.aborted


def test_n_choices_are_keyed_by_following_seeds(door: Gateway) -> None:
    def script(request: dict[str, Any]) -> Script:
        ids = door.tokenizer.encode(f"</think>{request['seed']}", special=False)
        return Script(tokens=[*ids, *door.tokenizer.eos_ids])

    door.double.script = script
    answer = door.chat(n=3, seed=2**63 - 2).json()
    assert [c["message"]["content"] for c in answer["choices"]] == [str(2**63 - 2), str(2**63 - 1), "0"]
    prompt = len(door.asked()["prompt"])
    assert answer["usage"]["prompt_tokens"] == prompt
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    chunks = events(door.chat(n=3, seed=7, stream=True).text)[:-1]
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {0: "7", 1: "8", 2: "9"}


def test_one_failing_choice_fails_the_request_and_frees_the_others(door: Gateway) -> None:
    door.double.script = lambda request: Script(
        list(range(10, 30)), fault="in_band" if request["seed"] == 1 else "hang", fault_after=1
    )
    response = door.chat(n=3, seed=0)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "cannot_continue")
    door.until(lambda: door.double.active == 0)


def test_logprobs_have_tokens_bytes_and_alternatives(door: Gateway) -> None:
    tokens = door.says("</think>ab你")
    content = door.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [bytes(entry["bytes"]) for entry in content] == [door.tokenizer.token_bytes(token) for token in tokens]
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(tokens)
    assert content[1]["token"] == "a"
    bare = door.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in bare] == [[]] * len(tokens)
    chunks = events(door.chat(logprobs=True, stream=True).text)[:-1]
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == bare
    assert door.chat().json()["choices"][0]["logprobs"] is None


def test_continuing_the_last_message(door: Gateway) -> None:
    door.says(" and more")
    asked = {"role": "assistant", "content": "One"}
    response = door.chat(messages=[{"role": "user", "content": "q"}, asked], continue_final_message=True)
    assert response.json()["choices"][0]["message"]["content"] == " and more"
    shown = door.tokenizer.decode(door.asked()["prompt"], skip_special=False)
    assert shown.endswith("<｜Assistant｜>One")


def test_a_last_message_that_is_marked_as_a_prefix_is_gone_on_with(door: Gateway) -> None:
    """Also where a request without the mark was answered just before."""
    door.says(" and more")
    asked = {"role": "user", "content": "q"}
    for prefix in (None, True, False, True):
        begun = {"role": "assistant", "content": "One", "prefix": prefix}
        message = door.chat(messages=[asked, begun]).json()["choices"][0]["message"]
        shown = door.tokenizer.decode(door.asked()["prompt"], skip_special=False)
        assert shown.endswith("<｜Assistant｜>One") == bool(prefix)
        assert message["content"] == (" and more" if prefix else "") or not prefix
    door.chat(messages=[{**asked, "prefix": True}])
    assert door.tokenizer.decode(door.asked()["prompt"], skip_special=False).endswith("<think>\n")


def test_a_long_prompt_is_made_aside_and_is_the_same(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a" + "word" * 30
    tokens = door.tokenizer.encode(text, special=False)
    door.says("x")
    door.chat(messages=[{"role": "user", "content": text}])
    short = door.asked()["prompt"]
    monkeypatch.setattr(aside, "LONG_BODY_BYTES", 10)
    door.chat(messages=[{"role": "user", "content": text}])
    assert door.asked()["prompt"] == short and len(short) > len(tokens)


def test_more_messages_than_the_context_has_tokens(door: Gateway) -> None:
    messages = [{"role": "user", "content": ""}] * (MAX_MODEL_LEN + 1)
    error = door.chat(messages=messages).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_and_special_tokens_are_shown_on_request(door: Gateway, stream: bool) -> None:
    def content(**fields: Any) -> str:
        response = door.chat(stream=stream, **fields)
        if not stream:
            return str(response.json()["choices"][0]["message"]["content"])
        events = [json.loads(event[6:]) for event in response.text.split("\n\n") if event.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    door.says("</think>one two three")
    assert content(stop="two", include_stop_str_in_output=True) == "one two"
    assert content(stop="two") == "one "
    end = door.tokenizer.token(min(door.tokenizer.eos_ids))
    assert content(skip_special_tokens=False) == "one two three"
    assert content(skip_special_tokens=False, include_stop_str_in_output=True) == "one two three" + end
    assert content(include_stop_str_in_output=True) == "one two three"


@pytest.mark.parametrize("words", [500, 200_000])
def test_too_long_a_prompt_is_told_in_numbers(door: Gateway, words: int) -> None:
    for response in (
        door.chat(messages=[{"role": "user", "content": "a " * words}]),
        door.complete(prompt=["Hi", "a " * words]),
    ):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert f"{MAX_MODEL_LEN} tokens" in error["message"]
        assert ("shorten the prompt by" in error["message"]) == (words == 500)
