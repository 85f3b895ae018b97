"""Text completions: every form of prompt, echo, and log-probabilities as evaluation harnesses read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.harness import MAX_MODEL_LEN, Gateway
from tests.lines.line_double import Script, logprob


def test_every_form_of_prompt(door: Gateway) -> None:
    door.says("out")
    assert door.tokenizer.bos_id is not None
    bos = [door.tokenizer.bos_id]
    one, two = (door.tokenizer.encode(text, special=False) for text in ("Hi", "Ho"))
    forms: list[tuple[Any, list[list[int]]]] = [
        ("Hi", [bos + one]),
        (["Hi", "Ho"], [bos + one, bos + two]),
        (one, [one]),
        ([one, two], [one, two]),
    ]
    for prompt, expected in forms:
        door.double.requests.clear()
        answer = door.complete(prompt=prompt).json()
        assert [choice["text"] for choice in answer["choices"]] == ["out"] * len(expected)
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
        asked = sorted(door.double.requests, key=lambda request: request["request_id"])
        assert [request["prompt"] for request in asked] == expected
        assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))
        assert {request["max_tokens"] for request in asked} == {16}


def test_the_tokens_that_stop_are_not_text(door: Gateway) -> None:
    tokens = door.tokenizer.encode("ab", special=False)
    door.double.script = lambda request: Script(tokens=tokens)
    answer = door.complete(stop_token_ids=[tokens[-1]], return_token_ids=True).json()["choices"][0]
    assert (answer["text"], answer["stop_reason"], answer["token_ids"]) == ("a", tokens[-1], tokens)
    assert answer["finish_reason"] == "stop" and answer["prompt_token_ids"] == door.asked()["prompt"]
    door.double.script = lambda request: Script(tokens=tokens)
    answer = door.complete().json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("ab", "length")
    assert "token_ids" not in answer


def test_an_unfinished_character_at_the_end_is_shown_as_replaced(door: Gateway) -> None:
    tokens = door.tokenizer.encode("a🚀", special=False)[:-1]
    door.double.script = lambda request: Script(tokens=tokens)
    assert door.complete().json()["choices"][0]["text"].startswith("a\ufffd")


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_scores_a_prompt_as_lm_eval_reads_it(door: Gateway, max_tokens: int, as_ids: bool) -> None:
    text = "The answer is 你 7"
    ids = door.tokenizer.encode(text, special=True)
    prompts = [ids, ids] if as_ids else [text, text]
    answer = door.complete(prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1).json()
    generated = max_tokens
    assert len(answer["choices"]) == 2
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        assert {len(values) for values in logprobs.values()} == {len(ids) + generated}
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == [logprob(t) for t in [*ids[1:], *[10] * generated]]
        for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert own in top.values() and max(top.values()) > own  # the double's tokens are never the likeliest
        shown = door.tokenizer.token(ids[0]) + text if as_ids else text
        assert choice["text"].startswith(shown) and choice["finish_reason"] == "length"
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets) and offsets[0] == 0
        if generated:
            assert offsets[-1] == len(shown)
        else:
            assert choice["text"] == shown
        plain = [at for at, token in enumerate(logprobs["tokens"]) if not token.startswith("bytes:")]
        for at in plain[1:]:
            assert choice["text"].startswith(logprobs["tokens"][at], offsets[at]), at
    assert answer["usage"]["completion_tokens"] == 2 * generated
    assert (door.asked()["prompt_logprobs"], door.asked()["logprobs"], door.asked()["max_tokens"]) == (1, 1, 1)


def test_logprobs_without_echo(door: Gateway) -> None:
    tokens = door.says("ab")
    logprobs = door.complete(logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", door.tokenizer.token(tokens[-1])]
    assert [len(top) for top in logprobs["top_logprobs"]] == [1, 1, 1]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert door.asked()["prompt_logprobs"] is None


def test_a_stream_says_the_same_as_the_whole(door: Gateway) -> None:
    door.says("One two 你好 three", per_chunk=2, delay=0.002)
    fields: dict[str, Any] = {
        "echo": True,
        "logprobs": 2,
        "return_token_ids": True,
        "n": 2,
        "seed": 3,
        "max_tokens": 50,
    }
    whole = door.complete(**fields).json()
    text = door.complete(**fields, stream=True, stream_options={"include_usage": True}).text
    *chunks, usage, done = [event[6:] for event in text.removesuffix("\n\n").split("\n\n")]
    assert done == "[DONE]" and json.loads(usage)["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in json.loads(chunk)["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"] == "HiOne two 你好 three"
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]
        assert [part["prompt_token_ids"] for part in parts if "prompt_token_ids" in part] == [
            choice["prompt_token_ids"]
        ]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts for value in (part["logprobs"] or {name: []})[name]] == values
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["stop"]


def test_many_prompts_go_to_the_line_in_measure(door: Gateway) -> None:
    most = 0

    def script(request: dict[str, Any]) -> Script:
        nonlocal most
        most = max(most, door.double.active + 1)
        return Script(tokens=[20], delay=0.01)

    door.double.script = script
    answer = door.complete(prompt=["x"] * 200, max_tokens=1)
    assert len(answer.json()["choices"]) == 200 and 8 < most <= 64


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [1]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [5, 1024]}, "prompt"),
        ({"prompt": [[5], [99999]]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"prompt": [5] * MAX_MODEL_LEN}, "prompt"),
        ({"max_tokens": MAX_MODEL_LEN}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ],
)
def test_refusals(door: Gateway, fields: dict[str, Any], param: str) -> None:
    response = door.complete(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert not door.double.requests


def test_options_that_mean_nothing_more_are_taken(door: Gateway) -> None:
    door.says("x")
    response = door.complete(best_of=2, n=2, suffix=None, response_format={"type": "text"}, user="u")
    assert response.status_code == 200 and len(response.json()["choices"]) == 2


@pytest.mark.parametrize("per_chunk", [1, 5])
def test_a_stop_string_waits_for_min_tokens(door: Gateway, per_chunk: int) -> None:
    tokens = [token for letter in "xaxbxc" for token in door.tokenizer.encode(letter, special=False)]
    assert len(tokens) == 6
    door.double.script = lambda request: Script(tokens=tokens, per_chunk=per_chunk)
    for min_tokens, text in ((0, ""), (1, "xa"), (2, "xa"), (3, "xaxb"), (5, "xaxbxc")):
        choice = door.complete(stop="x", min_tokens=min_tokens).json()["choices"][0]
        assert (choice["text"], choice["stop_reason"]) == (text, None if min_tokens == 5 else "x")
