"""The worker over HTTP: answers, streams, continuation, refusals, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.engine.spawn import Spawned, events, wait_for
from tests.engine.tiny import EOS, VOCAB, write_checkpoint

PROMPT = [3, 14, 15, 92, 65, 35]
ENDLESS = {"max_tokens": 8000, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[tuple[Spawned, Spawned]]:
    limits = ("--max-running", "1", "--max-waiting", "1", "--kv-tokens", "9000", "--max-tokens-per-step", "16")
    with Spawned(folder, "--kv-tokens", "16384") as worker, Spawned(folder, *limits) as narrow:
        yield worker, narrow
        for started in (worker, narrow):
            assert started.process.poll() is None, f"the worker died: {''.join(started.last_words)}"
            assert not any("Traceback" in line for line in started.last_words), "".join(started.last_words)


@pytest.fixture(scope="module")
def worker(both: tuple[Spawned, Spawned]) -> Spawned:
    return both[0]


@pytest.fixture(scope="module")
def narrow(both: tuple[Spawned, Spawned]) -> Spawned:
    """One runs, one waits."""
    return both[1]


def is_idle(worker: Spawned) -> bool:
    health = worker.health()
    return health["running"] == health["waiting"] == 0 and worker.metric("vllm:kv_cache_usage_perc") == 0


# Answers


def test_it_says_who_it_is(worker: Spawned) -> None:
    ready = worker.ready
    assert (ready["model"], ready["vocab_size"], ready["device"], ready["dtype"]) == ("tiny", VOCAB, "cpu", "float32")
    assert (ready["max_model_len"], ready["kv_tokens"]) == (16384, 16384)
    (card,) = worker.http.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"], card["simulated"]) == ("tiny", 16384, False)
    health = worker.http.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")


def test_a_whole_answer(worker: Spawned) -> None:
    body = worker.complete(prompt=PROMPT, max_tokens=5, ignore_eos=True).json()
    (choice,) = body["choices"]
    assert (body["object"], body["model"], choice["index"], choice["text"]) == ("text_completion", "tiny", 0, "")
    assert len(choice["token_ids"]) == 5
    assert choice["prompt_token_ids"] == PROMPT
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("length", None, None)
    assert "prompt_logprobs" not in choice
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 5, 11)


def test_without_a_tokenizer_it_has_no_grammars(worker: Spawned) -> None:
    assert worker.http.get("/v1/models").json()["data"][0]["lacks"] == worker.ready["lacks"] == ["grammar", "patterns"]
    for grammar, words in (({"kind": "regex", "text": "a"}, "tokenizer.json"), ({"kind": "x", "text": "a"}, "kind")):
        response = worker.complete(prompt=PROMPT, grammar=grammar)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "grammar") and words in error["message"]


def test_a_stream_carries_the_same_tokens(worker: Spawned) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "ignore_eos": True, "temperature": 0.8, "seed": 1}
    response = worker.complete(**asked, stream=True, stream_options={"include_usage": True}, request_id="mine")
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response)
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in [*chunks, usage]} == {"mine"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [token for c in choices for token in c["token_ids"]] == worker.tokens(**asked)
    assert ["prompt_token_ids" in c for c in choices] == [True] + [False] * (len(choices) - 1)
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (6, 12)


def test_a_stream_without_usage(worker: Spawned) -> None:
    *chunks, done = events(worker.complete(prompt=PROMPT, max_tokens=2, stream=True))
    assert done == "[DONE]"
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_logprobs(worker: Spawned) -> None:
    choice = worker.choice(prompt=PROMPT, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    found = choice["logprobs"]
    assert found["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    for name, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(top) == 3
        assert top[name] == logprob == max(top.values()) <= 0  # greedy: the likeliest
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for token, places in zip(PROMPT[1:], rest, strict=True):
        assert {1, 2} <= {place["rank"] for place in places.values()}
        assert len(places) == 2 + (places[str(token)]["rank"] > 2)


def test_streamed_logprobs_come_with_their_tokens(worker: Spawned) -> None:
    response = worker.complete(prompt=PROMPT, max_tokens=6, ignore_eos=True, logprobs=0, prompt_logprobs=0, stream=True)
    choices = [event["choices"][0] for event in events(response)[:-1]]
    for choice in choices:
        assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    assert [len(c.get("prompt_logprobs") or []) for c in choices] == [len(PROMPT)] + [0] * (len(choices) - 1)


def test_the_models_own_end_token_ends(worker: Spawned) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 6, "logit_bias": {str(EOS): 100}}
    choice = worker.choice(**asked)
    assert (choice["token_ids"], choice["finish_reason"], choice["stop_reason"]) == ([EOS], "stop", EOS)
    assert worker.tokens(**asked, ignore_eos=True) == [EOS] * 6
    assert len(worker.tokens(**asked, min_tokens=3)) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1, "seed": 11},
        {"temperature": 0.9, "seed": 12, "top_p": 0.9, "repetition_penalty": 1.3, "logprobs": 2},
        {"temperature": 0, "presence_penalty": 1, "frequency_penalty": 0.5},
    ],
    ids=["greedy", "sampled", "sampled and penalised", "greedy and penalised"],
)
def test_a_stream_goes_on_from_what_another_line_said(worker: Spawned, settings: dict[str, Any]) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 20, "ignore_eos": True} | settings
    whole = worker.tokens(**asked)
    for said in (1, 7, 19):
        body = worker.complete(**asked, output_prefix_ids=whole[:said]).json()
        assert body["choices"][0]["token_ids"] == whole[said:]
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (6, 20)


def test_a_prefix_is_found_in_the_cache_and_changes_nothing(worker: Spawned) -> None:
    prompt = [(i * 31) % VOCAB for i in range(100)]
    first = worker.complete(prompt=prompt, max_tokens=8).json()
    second = worker.complete(prompt=prompt, max_tokens=8).json()
    assert first["choices"][0]["token_ids"] == second["choices"][0]["token_ids"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96


def test_many_streams_at_once(worker: Spawned) -> None:
    asked = [{"prompt": [*PROMPT, i], "max_tokens": 8 + i % 9, "temperature": 1, "seed": i} for i in range(32)]

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Any]:
        return events(await client.post("/v1/completions", json=body | {"stream": True}))

    async def everyone() -> list[list[Any]]:
        async with httpx.AsyncClient(base_url=worker.http.base_url, timeout=60, trust_env=False) as client:
            return await asyncio.gather(*(one(client, body) for body in asked))

    answers = asyncio.run(everyone())
    assert all(answer[-1] == "[DONE]" for answer in answers)
    for body, got in list(zip(asked, answers, strict=True))[::4]:
        assert [token for event in got[:-1] for token in event["choices"][0]["token_ids"]] == worker.tokens(**body)
    assert is_idle(worker)


def test_progress_is_counted(worker: Spawned) -> None:
    before, tokens = worker.health(), worker.metric("vllm:generation_tokens_total")
    ended = worker.metric("vllm:request_success_total")
    worker.complete(prompt=PROMPT, max_tokens=5, ignore_eos=True)
    after = worker.health()
    assert after["tokens_generated"] - before["tokens_generated"] == 5
    assert after["steps"] - before["steps"] == 5
    assert worker.metric("vllm:generation_tokens_total") - tokens == 5
    assert worker.metric("vllm:request_success_total") - ended == 1


# Clients that go away, deadlines, full queues


@contextlib.contextmanager
def endless_stream(worker: Spawned, **more: Any) -> Iterator[None]:
    """A stream that has begun; leaving the block closes the connection."""
    body = {"prompt": PROMPT, "stream": True, **ENDLESS, **more}
    client = httpx.Client(base_url=worker.http.base_url, timeout=30, trust_env=False)
    with client, client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()  # kept: the connection closes when it is collected
        next(lines)
        yield


def test_closing_a_stream_frees_its_pages(worker: Spawned) -> None:
    aborted = worker.metric("vllm:request_success_total")
    with endless_stream(worker):
        assert worker.health()["running"] == 1
        assert worker.metric("vllm:kv_cache_usage_perc") > 0
    wait_for(lambda: is_idle(worker))
    assert worker.metric("vllm:request_success_total") == aborted + 1


def test_closing_a_connection_that_waits_for_a_whole_answer_aborts_it(worker: Spawned) -> None:
    with pytest.raises(httpx.ReadTimeout):
        worker.http.post("/v1/completions", json={"prompt": PROMPT, **ENDLESS}, timeout=0.3)
    wait_for(lambda: is_idle(worker))


def test_a_request_id_is_taken_while_it_lives_and_free_at_once_when_it_ended(worker: Spawned) -> None:
    """The end of a request must not abort the next one of its name, though the engine is in the midst of a step."""
    with endless_stream(worker, request_id="mine"):
        refused = worker.complete(prompt=PROMPT, request_id="mine")
        assert (refused.status_code, refused.json()["error"]["param"]) == (409, "request_id")
        for _ in range(20):
            assert worker.choice(prompt=PROMPT, max_tokens=1, request_id="again")["finish_reason"] == "length"
    wait_for(lambda: is_idle(worker))


def test_a_deadline(worker: Spawned) -> None:
    choice = worker.choice(prompt=PROMPT, timeout_s=0.3, **ENDLESS)
    assert choice["finish_reason"] == "deadline"
    assert 0 < len(choice["token_ids"]) < 8000
    last, done = events(worker.complete(prompt=PROMPT, timeout_s=0.2, stream=True, **ENDLESS))[-2:]
    assert (last["choices"][0]["finish_reason"], done) == ("deadline", "[DONE]")
    assert worker.choice(prompt=PROMPT, timeout_s=0)["finish_reason"] == "deadline"
    assert is_idle(worker)


def test_a_full_queue_says_when_to_come_again(narrow: Spawned) -> None:
    with endless_stream(narrow):
        with pytest.raises(httpx.ReadTimeout):
            narrow.http.post("/v1/completions", json={"prompt": PROMPT, **ENDLESS}, timeout=0.2)
        wait_for(lambda: narrow.health()["waiting"] == 0)  # who left no longer waits
        assert narrow.choice(prompt=PROMPT, timeout_s=0.1)["token_ids"] == []  # waited in vain
        raw = json.dumps({"prompt": PROMPT}).encode()
        with socket.create_connection(("127.0.0.1", narrow.ready["port"])) as waiting:
            waiting.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
            wait_for(lambda: narrow.health()["waiting"] == 1)
            refused = narrow.complete(prompt=PROMPT)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    wait_for(lambda: is_idle(narrow))
    assert len(narrow.tokens(prompt=PROMPT, max_tokens=3, ignore_eos=True)) == 3


# What is refused


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{", 400, None, None),
        (b"\xff\xfe", 400, None, None),
        (b'{"prompt": [1], "request_id": "\xff"}', 400, None, None),
        (b'{"prompt": [1], "temperature": NaN}', 400, None, None),
        ({"prompt": "text"}, 400, "prompt", None),
        ({"prompt": []}, 400, "prompt", None),
        ({"prompt": [VOCAB]}, 400, "prompt", None),
        ({"prompt": [-1]}, 400, "prompt[0]", None),
        ({"prompt": [1], "n": 2}, 400, "n", None),
        ({"prompt": [1], "max_tokens": 10**400}, 400, "max_tokens", None),
        ({"prompt": [1], "temperature": 1e9}, 400, "temperature", None),
        ({"prompt": [1], "model": "other"}, 404, "model", "model_not_found"),
        ({"prompt": [1] * 16384}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": [1], "output_prefix_ids": [2, 3], "max_tokens": 2}, 400, "prompt", None),
    ],
)
def test_bad_requests(worker: Spawned, body: Any, status: int, param: str | None, code: str | None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = worker.http.post("/v1/completions", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert worker.http.get("/health").status_code == 200


def test_a_huge_body_is_refused_and_the_worker_goes_on(worker: Spawned) -> None:
    response = worker.http.post("/v1/completions", content=b" " * (65 * 2**20))
    assert response.status_code == 413
    assert "larger than" in response.json()["error"]["message"]
    assert len(worker.tokens(prompt=PROMPT, max_tokens=2, ignore_eos=True)) == 2


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/completions", 405), ("GET", "/v1/nothing", 404)])
def test_unknown_doors(worker: Spawned, method: str, path: str, status: int) -> None:
    response = worker.http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_client_that_leaves_in_the_midst_of_its_body(worker: Spawned) -> None:
    with socket.create_connection(("127.0.0.1", worker.ready["port"])) as client:
        client.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt"')
    time.sleep(0.05)
    assert is_idle(worker)
