"""`/tokenize` and `/detokenize`: the same token ids as a line is asked with, and the same text back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from tests.gateway.harness import MODEL, Gateway
from tests.gateway.several import several
from tests.gateway.test_access import store

TEXTS = ["Hi", "", "1 2 你好 👋\n", "a<｜User｜>b"]


def tokenize(door: Gateway, **fields: Any) -> httpx.Response:
    return door.client.post("/tokenize", json={"model": MODEL, **fields})


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_a_text_there_and_back(door: Gateway, text: str, special: bool) -> None:
    answer = tokenize(door, prompt=text, add_special_tokens=special, return_token_strs=True).json()
    ids = door.tokenizer.encode(text, special=special)
    assert answer == {
        "count": len(ids),
        "max_model_len": 256,
        "tokens": ids,
        "token_strs": [door.tokenizer.token(token) for token in ids],
    }
    back = door.client.post("/detokenize", json={"tokens": ids}).json()  # the only model need not be named
    assert back == {"prompt": ("<｜begin▁of▁sentence｜>" if special else "") + text}


def test_they_are_what_a_line_is_asked_with(door: Gateway) -> None:
    door.complete(prompt="one two")
    assert tokenize(door, prompt="one two").json()["tokens"] == door.asked()["prompt"]
    for fields in ({}, {"add_generation_prompt": False}, {"reasoning_effort": "none"}):
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]
        door.chat(messages=messages, **fields)
        answer = tokenize(door, messages=messages, **fields).json()
        assert answer["tokens"] == door.asked()["prompt"] and answer["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("tokenize", {}, 400, "prompt"),
        ("tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, 400, "prompt"),
        ("tokenize", {"messages": []}, 400, "messages"),
        ("tokenize", {"messages": [{"role": "who", "content": "b"}]}, 400, "messages[0].role"),
        ("tokenize", {"messages": [{"role": "user", "content": "b"}], "add_special_tokens": True}, 400, None),
        ("tokenize", {"prompt": 5}, 400, "prompt"),
        ("tokenize", {"prompt": "a", "model": "gpt-9"}, 404, "model"),
        ("detokenize", {}, 400, "tokens"),
        ("detokenize", {"tokens": [1024]}, 400, "tokens"),
        ("detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("detokenize", {"tokens": "a"}, 400, "tokens"),
    ],
)
def test_a_wrong_request_is_told(
    door: Gateway, path: str, fields: dict[str, Any], status: int, param: str | None
) -> None:
    response = door.client.post(f"/{path}", json={"model": MODEL, **fields})
    error = response.json()["error"]
    assert response.status_code == status and error["param"] == (param or "add_special_tokens")


def test_a_key_is_needed_and_its_limit_on_requests_holds(tiny_folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with store(tmp_path) as kept, several(tiny_folder, ["a"], access=kept.access) as made:
            bearer = kept.key("k", requests_per_minute=4)
            messages = [{"role": "user", "content": "x"}]
            asks: list[tuple[str, dict[str, Any]]] = [
                ("/tokenize", {"prompt": "x"}),
                ("/detokenize", {"tokens": [5]}),
                ("/v1/messages/count_tokens", {"model": MODEL, "messages": messages}),
            ]
            for path, body in asks:
                assert (await made.client.post(path, json=body)).status_code == 401
                assert (await made.client.post(path, json=body, headers=bearer)).status_code == 200
            as_anthropic = {"x-api-key": bearer["authorization"].removeprefix("Bearer ")}
            asked = {"model": MODEL, "messages": messages, "max_tokens": 3}
            answer = await made.client.post("/v1/messages", json=asked, headers=as_anthropic)
            assert answer.status_code == 200
            late = await made.client.post("/tokenize", json={"prompt": "x"}, headers=bearer)
            assert late.status_code == 429 and int(late.headers["retry-after"]) > 0
            refused = await made.client.post("/v1/messages", json=asked, headers=as_anthropic)
            assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
            used = kept.used("model")[(MODEL,)]
            assert (used.requests, used.completion_tokens) == (1, 3)

    uvloop.run(main())
