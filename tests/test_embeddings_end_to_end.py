"""Vectors as users have them: the real server over a folder in Qwen3-Embedding's layout, and the official client."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from tests.engine import embedders
from tests.serving import Served, serving, until

MODEL = "embedder"
TEXTS = ["What is 17+25?", "42乘6等于多少？", "a", "hello " * 40]


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> embedders.Embedder:
    folder = tmp_path_factory.mktemp("e2e") / MODEL
    folder.mkdir()
    made = embedders.save(folder, is_matryoshka=True)
    embedders.tokenizer(folder)
    return made


@pytest.fixture(scope="module")
def server(of: embedders.Embedder) -> Iterator[Served]:
    with serving(str(of.folder), "--dtype", "float32", "--kv-tokens", "4096") as made:
        yield made


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=server.base, api_key="none", max_retries=0, http_client=http) as made:
        yield made


def ids_of(of: embedders.Embedder, text: str) -> list[int]:
    """As the model's own library cuts the text."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(of.folder)(text)["input_ids"]


def test_the_clients_own_way(client: openai.OpenAI, of: embedders.Embedder) -> None:
    """It asks for base64 where nobody says, and gives numbers."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert [entry.index for entry in answer.data] == [0, 1, 2, 3] and answer.model == MODEL
    wanted = [ids_of(of, text) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, wanted))
    for entry, ids in zip(answer.data, wanted, strict=True):
        assert ids[-1] == 256 and np.abs(np.asarray(entry.embedding) - of.vector(ids).numpy()).max() < 1e-5


def test_every_form_says_the_same(client: openai.OpenAI, of: embedders.Embedder) -> None:
    text = TEXTS[0]
    (plain,) = client.embeddings.create(model=MODEL, input=text, encoding_format="float").data
    (by_ids,) = client.embeddings.create(model=MODEL, input=ids_of(of, text), encoding_format="float").data
    (listed,) = client.embeddings.create(model=MODEL, input=[ids_of(of, text)], encoding_format="float").data
    (packed,) = client.embeddings.create(model=MODEL, input=[text], encoding_format="base64").data
    unpacked = np.frombuffer(base64.b64decode(str(packed.embedding)), "<f4")
    assert plain.embedding == by_ids.embedding == listed.embedding
    assert np.array_equal(np.asarray(plain.embedding, "f4"), unpacked)


def test_shorter_vectors(client: openai.OpenAI, of: embedders.Embedder) -> None:
    (entry,) = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=16).data
    whole = of.vector(ids_of(of, TEXTS[0])).numpy()[:16]
    assert np.abs(np.asarray(entry.embedding) - whole / np.linalg.norm(whole)).max() < 1e-5


def test_hundreds_in_one_request(client: openai.OpenAI, of: embedders.Embedder) -> None:
    texts = [f"text {number}" * (1 + number % 7) for number in range(300)]
    answer = client.embeddings.create(model=MODEL, input=texts, user="me")
    for number in (0, 31, 32, 33, 150, 299):
        wanted = of.vector(ids_of(of, texts[number])).numpy()
        assert np.abs(np.asarray(answer.data[number].embedding) - wanted).max() < 1e-5


def test_what_is_wrong_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context length is 512 tokens, but input\\[0\\] has 901"):
        client.embeddings.create(model=MODEL, input="x" * 900)
    with pytest.raises(openai.BadRequestError, match="input is empty"):
        client.embeddings.create(model=MODEL, input="")
    with pytest.raises(openai.BadRequestError, match="gives vectors of texts and generates nothing") as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_embeds"


def test_it_is_told_and_counted(server: Served) -> None:
    document = server.client.get("/openapi.json").json()
    asked = document["paths"]["/v1/embeddings"]["post"]
    assert asked["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("EmbeddingsRequest")
    before = server.metric("twinline_gateway_prompt_tokens_total")
    answer = server.client.post("/v1/embeddings", json={"model": MODEL, "input": ["ab", "c"], "user": "me"})
    assert answer.json()["usage"]["prompt_tokens"] == 5
    assert server.metric("twinline_gateway_prompt_tokens_total") == before + 5
    assert answer.headers["warning"] == '299 twinline "ignored: user"' and answer.headers["x-request-id"]


def test_a_killed_engine_is_started_again_and_answers(server: Served, of: embedders.Embedder) -> None:

    os.kill(server.worker_pid(), signal.SIGKILL)
    body = {"model": MODEL, "input": "after"}
    until(lambda: server.client.post("/v1/embeddings", json=body).status_code == 200, 60)
    found = server.client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.abs(np.asarray(found) - of.vector(ids_of(of, "after")).numpy()).max() < 1e-5


def test_a_model_that_attends_both_ways_is_refused_at_once(of: embedders.Embedder, tmp_path: Path) -> None:
    from twinline.cli import main

    for file in of.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config = json.loads((of.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1


def test_what_the_clients_page_says(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "clients.md").read_text("utf-8")
    (block,) = [found for found in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M) if "embeddings" in found]
    exec(block.replace("http://127.0.0.1:8000", server.url).replace("MODEL", MODEL), {})
    assert capsys.readouterr().out == "[60, 60] 37\n"
