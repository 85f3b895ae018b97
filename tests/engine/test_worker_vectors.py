"""A worker over a folder that gives vectors: its own door, its refusals, and what it says of itself."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from tests.engine import embedders
from tests.engine.spawn import Spawned, wait_for
from tests.engine.test_worker_app import Scripted

from twinline.engine.build import Built
from twinline.engine.metrics import Metrics
from twinline.engine.request import Output, Request
from twinline.engine.scheduler import QueueFull
from twinline.engine.worker import Worker
from twinline.facts.pooling import Pooling

OPTIONS = ("--device", "cpu", "--dtype", "float32", "--kv-tokens", "2048", "--threads", "1", "--max-waiting", "8")


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> embedders.Embedder:
    return embedders.save(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def worker(of: embedders.Embedder) -> Iterator[Spawned]:
    with Spawned(of.folder, *OPTIONS) as made:
        yield made


def embed(worker: Spawned, **body: Any) -> httpx.Response:
    return worker.http.post("/v1/embeddings", json=body)


def far(of: embedders.Embedder, ids: list[int], vector: Any) -> float:
    return float(np.abs(np.asarray(vector, "f8") - of.vector(ids).numpy()).max())


def test_it_says_that_it_embeds(worker: Spawned) -> None:
    assert worker.ready["embeds"] is True
    (card,) = worker.http.get("/v1/models").json()["data"]
    assert card["embeds"] is True


def test_texts_in_and_their_vectors_in_order(worker: Spawned, of: embedders.Embedder) -> None:
    texts = [[1, 2, 3], [4], list(range(5, 205)), [1, 2, 3]]
    answer = embed(worker, input=texts).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    assert max(far(of, ids, entry["embedding"]) for ids, entry in zip(texts, answer["data"], strict=True)) < 1e-5
    assert answer["usage"] == {"prompt_tokens": 207, "total_tokens": 207}
    written = [repr(number).split("e")[0] for entry in answer["data"] for number in entry["embedding"]]
    assert max(len(digits.replace(".", "").strip("-0")) for digits in written) <= 9  # what float32 has, no more
    as_bytes = embed(worker, input=texts, encoding_format="base64").json()
    for entry, same in zip(answer["data"], as_bytes["data"], strict=True):
        found = np.frombuffer(base64.b64decode(same["embedding"]), "<f4")
        assert np.array_equal(found, np.asarray(entry["embedding"], "f4"))


def test_many_at_once(worker: Spawned, of: embedders.Embedder) -> None:
    def one(seed: int) -> float:
        ids = [(seed * 31 + i) % of.vocab for i in range(3 + seed)]
        (entry,) = embed(worker, input=[ids]).json()["data"]
        return far(of, ids, entry["embedding"])

    with ThreadPoolExecutor(8) as threads:
        assert max(threads.map(one, range(16))) < 1e-5
    wait_for(lambda: worker.health()["running"] == 0)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({}, 400, None, "missing required field `input`"),
        ({"input": []}, 400, "input", "length >= 1"),
        ({"input": [[]]}, 400, "input[0]", "length >= 1"),
        ({"input": [[1], [331]]}, 400, "input", "input[1] has token id 331, and the vocabulary ends at 330"),
        ({"input": ["text"]}, 400, "input[0]", "array"),
        ({"input": [[1]], "model": "another"}, 404, "model", "not 'another'"),
        ({"input": [[1], [2] * 513]}, 400, "input", "input[1] has 513 tokens and at most 512 are allowed"),
        ({"input": [[1]] * 2049}, 400, "input", "length <= 2048"),
    ],
)
def test_bad_requests(worker: Spawned, body: Any, status: int, param: str | None, words: str) -> None:
    answer = embed(worker, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param) and words in error["message"]
    assert worker.health()["running"] == worker.health()["waiting"] == 0


def test_more_texts_than_may_wait(worker: Spawned) -> None:
    """Eight may: the others are given to the engine as some are over."""
    answer = embed(worker, input=[[1 + i % 300] * 40 for i in range(120)])
    assert answer.status_code == 200 and len(answer.json()["data"]) == 120


def test_a_deadline(worker: Spawned) -> None:
    answer = embed(worker, input=[[1] * 500] * 4, timeout_s=1e-6)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")


def test_it_generates_nothing(worker: Spawned) -> None:
    answer = worker.complete(prompt=[1, 2], max_tokens=1)
    assert answer.status_code == 400 and "use /v1/embeddings" in answer.json()["error"]["message"]


LAST = Pooling("lasttoken", normalize=True)


def call(
    engine: Scripted, *, leaves: bool = False, pooling: Pooling | None = LAST, **fields: Any
) -> list[dict[str, Any]]:
    """What a worker over that engine answers to three texts."""
    worker = Worker("tiny", Metrics("tiny"))
    spec = SimpleNamespace(vocab=10)
    worker.built = cast(Built, SimpleNamespace(engine=engine, spec=spec, pooling=pooling, max_model_len=99))
    engine.deliver = worker.deliver
    body = json.dumps({"input": [[1], [2], [3]], "request_id": "a"} | fields).encode()
    messages = [{"type": "http.request", "body": body}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        if not leaves:
            await asyncio.sleep(60)
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def go() -> None:
        worker.loop = asyncio.get_running_loop()
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings"}
        await asyncio.wait_for(worker(scope, receive, send), 10)

    asyncio.run(go())
    assert worker.streams == {} and worker.embeds is (pooling is not None)
    return sent


def test_a_client_that_leaves_ends_all_its_texts() -> None:
    engine = Scripted()
    assert call(engine, leaves=True) == []
    assert sorted(engine.aborted) == ["a-0", "a-1", "a-2"]


def test_a_full_queue_says_when_to_come_again() -> None:
    engine = Scripted(refusal=QueueFull("8 requests wait", 8))
    start, body = call(engine)
    assert start["status"] == 429 and (b"retry-after", b"1") in start["headers"] and b"queue_full" in body["body"]
    assert engine.aborted == []


class Crowded(Scripted):
    """It takes one text, is then full with others' requests for `refusals` tries, or for good, and takes one again."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = self.left = refusals
        self.taken = 0

    def submit(self, request: Request) -> None:
        if self.taken == 1 and self.left:
            self.left -= 1
            raise QueueFull("8 requests wait", 8)
        self.taken += 1
        self.deliver([Output(request.id, finish="stop", vector=np.full(2, self.taken, "<f4").tobytes())])


def test_a_queue_that_others_fill_ends_no_request_that_has_begun() -> None:
    start, body = call(Crowded(refusals=4))
    assert start["status"] == 200
    assert [entry["embedding"][0] for entry in json.loads(body["body"])["data"]] == [1, 2, 3]


def test_a_queue_that_others_fill_until_the_deadline() -> None:
    start, body = call(Crowded(refusals=10**6), timeout_s=0.2)
    assert start["status"] == 504 and b"did not finish within timeout_s" in body["body"]


def test_an_engine_that_fails_one_text_fails_them_all() -> None:
    engine = Scripted((Output("", finish="error", error="it burns"),))
    start, body = call(engine)
    assert start["status"] == 500 and b"it burns" in body["body"]
    assert sorted(engine.aborted) == ["a-1", "a-2"]


def test_a_model_that_generates_gives_no_vectors() -> None:
    start, body = call(Scripted(), pooling=None)
    assert start["status"] == 400 and b"has no modules.json" in body["body"]
