"""The line protocol's JSON: what is read and written, and that nothing but BadRequest comes of any body."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.engine import wire
from twinline.engine.request import Output, Request, TokenLogprob

VOCAB = 100
EOS = frozenset([7, 8])
FIELDS = tuple(msgspec.structs.asdict(wire.CompletionRequest(prompt=[1])))


def read(body: dict[str, Any] | bytes, seed: int = 5) -> Request:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.to_request(wire.decode(encoded), "id", vocab=VOCAB, eos=EOS, seed=seed)


def refused(body: dict[str, Any] | bytes) -> wire.BadRequest:
    with pytest.raises(wire.BadRequest) as caught:
        read(body)
    return caught.value


def test_every_field_arrives() -> None:
    before = time.monotonic()
    request = read(
        {
            "prompt": [1, 2],
            "output_prefix_ids": [3],
            "max_tokens": 9,
            "min_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "min_p": 0.1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.1,
            "seed": 2**63 - 1,
            "logit_bias": {"4": -1, "99": 2.5},
            "stop_token_ids": [11],
            "logprobs": 2,
            "prompt_logprobs": 0,
            "priority": -3,
            "timeout_s": 60,
        }
    )
    params = request.params
    assert (request.prompt, request.output, request.carried, request.priority) == ([1, 2], [3], 1, -3)
    assert (params.max_tokens, params.min_tokens, params.temperature, params.top_p) == (9, 2, 0.5, 0.9)
    assert (params.top_k, params.min_p, params.seed) == (4, 0.1, 2**63 - 1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.2, 0.3, 1.1)
    assert params.logit_bias == ((4, -1.0), (99, 2.5))
    assert params.stop_token_ids == {7, 8, 11}
    assert (params.logprobs, params.prompt_logprobs) == (2, 0)
    assert request.deadline is not None and before + 59 < request.deadline < time.monotonic() + 61


def test_what_is_left_out() -> None:
    request = read({"prompt": [1]}, seed=42)
    assert (request.params.seed, request.deadline, request.output) == (42, None, [])
    assert request.params.stop_token_ids == EOS
    assert read({"prompt": [1], "ignore_eos": True, "stop_token_ids": [8]}).params.stop_token_ids == {8}
    assert read({"prompt": [1], "top_k": -1}).params.top_k == 0
    assert read({"prompt": [1], "seed": 0}).params.seed == 0


def test_the_callers_lists_are_not_shared() -> None:
    asked = wire.decode(b'{"prompt": [1], "output_prefix_ids": [2]}')
    request = wire.to_request(asked, "id", vocab=VOCAB, eos=EOS, seed=0)
    request.output.append(9)
    assert asked.output_prefix_ids == [2]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": []}, "prompt", "length >= 1"),
        ({"prompt": "text"}, "prompt", "array"),
        ({"prompt": [1, "2"]}, "prompt[1]", "int"),
        ({"prompt": [1.5]}, "prompt[0]", "int"),
        ({"prompt": [True]}, "prompt[0]", "int"),
        ({"prompt": [-1]}, "prompt[0]", ">= 0"),
        ({"prompt": [3, 100]}, "prompt", "token id 100, and the vocabulary ends at 99"),
        ({"prompt": [1], "output_prefix_ids": [100]}, "output_prefix_ids", "100"),
        ({"prompt": [1], "stop_token_ids": [100]}, "stop_token_ids", "100"),
        ({"prompt": [1], "n": 2}, "n", "n = 1"),
        ({"prompt": [1], "return_token_ids": False}, "return_token_ids", "no text"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens", "between 1 and"),
        ({"prompt": [1], "min_tokens": 17}, "min_tokens", "between 0 and 16"),
        ({"prompt": [1], "temperature": -0.1}, "temperature", "between 0 and 100"),
        ({"prompt": [1], "temperature": "1"}, "temperature", "float"),
        ({"prompt": [1], "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": [1], "logprobs": 21}, "logprobs", "between 0 and 20"),
        ({"prompt": [1], "seed": -1}, "seed", "between 0 and"),
        ({"prompt": [1], "seed": 2**63}, "seed", "int"),
        ({"prompt": [1], "max_tokens": 10**400}, "max_tokens", "int"),
        ({"prompt": [1], "logit_bias": {"100": 1}}, "logit_bias", "outside 0 to 99"),
        ({"prompt": [1], "logit_bias": {"-1": 1}}, "logit_bias", "outside 0 to 99"),
        ({"prompt": [1], "logit_bias": {"word": 1}}, "logit_bias", "token ids"),
        ({"prompt": [1], "stream": 1}, "stream", "bool"),
        ({"prompt": [1], "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "bool"),
        ({"prompt": [1], "request_id": 5}, "request_id", "str"),
        ({}, None, "prompt"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], param: str | None, message: str) -> None:
    error = refused(body)
    assert (error.status, error.param) == (400, param)
    assert message in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"prompt": [1], "request_id": "\xff"}',
        b'{"prompt": [1], "request_id": "\\ud800"}',
        b'{"prompt": [1], "temperature": NaN}',
        b'{"prompt": [1], "temperature": 1e999}',
        b'{"prompt": [1], "timeout_s": Infinity}',
        b'{"prompt": [1], "unknown": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
        b'{"prompt": [1' + b"0" * 10**4 + b"]}",
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    assert refused(body).status == 400


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_subnormal=False)  # an engine in this process has switched them off
    | st.text(max_size=5)
    | st.lists(st.integers(-2, VOCAB + 1), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6)
valid_prompt = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)


def survives(body: bytes) -> None:
    try:
        request = read(body)
    except wire.BadRequest as error:
        wire.error_body(str(error), "invalid_request_error", error.param, error.code).decode()
        return
    assert request.prompt and all(0 <= token < VOCAB for token in request.prompt + request.output)
    assert math.isfinite(request.params.temperature)


@settings(max_examples=400, deadline=None)
@given(bodies, st.none() | valid_prompt)
def test_random_bodies(body: dict[str, Any], prompt: list[int] | None) -> None:
    survives(json.dumps(body if prompt is None else body | {"prompt": prompt}).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(body: bytes) -> None:
    survives(body)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bodies(data: st.DataObject) -> None:
    body = bytearray(b'{"prompt": [1, 2], "logit_bias": {"3": 1e2}, "seed": 12345, "request_id": "\xc3\xa9"}')
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(body))


# What is written

ENTRY = TokenLogprob(5, -0.5, 2, ((3, -0.25), (5, -0.5)))
RARE = TokenLogprob(9, -7.0, 40, ((3, -0.25),))


def test_logprobs_are_named_by_token_id_and_hold_the_chosen_one() -> None:
    assert wire.logprobs((ENTRY, RARE)) == {
        "tokens": ["token_id:5", "token_id:9"],
        "token_logprobs": [-0.5, -7.0],
        "top_logprobs": [{"token_id:3": -0.25, "token_id:5": -0.5}, {"token_id:3": -0.25, "token_id:9": -7.0}],
    }
    assert wire.logprobs(()) is None


def test_prompt_logprobs_hold_the_prompts_own_token_with_its_rank() -> None:
    assert wire.prompt_logprobs((None, ENTRY, RARE)) == [
        None,
        {"3": {"logprob": -0.25, "rank": 1}, "5": {"logprob": -0.5, "rank": 2}},
        {"3": {"logprob": -0.25, "rank": 1}, "9": {"logprob": -7.0, "rank": 40}},
    ]
    assert wire.prompt_logprobs(None) is None


def test_a_choice() -> None:
    chosen = json.loads(wire.encode(wire.choice(Output("a", (5, 7), finish="stop", stop_token=7))))
    assert chosen == {
        "index": 0,
        "text": "",
        "token_ids": [5, 7],
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": 7,
    }
    assert wire.choice(Output("a", (5,), prompt_logprobs=(None,)))["prompt_logprobs"] == [None]


def test_usage_and_errors() -> None:
    assert wire.usage(3, 4, 2) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert json.loads(wire.error_body("no", "invalid_request_error", "n")) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": None}
    }
