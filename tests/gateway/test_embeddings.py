"""`/v1/embeddings` at the door: what may be asked, how it is shared out, and what dying lines and other weights do."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvloop
from tests.gateway.several import MODEL, PATIENCE, Several, plain, several
from tests.gateway.test_access import store
from tests.lines.vector_double import SIZE, Reply, VectorDouble, vector_of

from twinline.gateway import vectors
from twinline.gateway.embeddings import MAX_INPUTS, SHARE_INPUTS, UNSEEN_TOKENS, Input, shares
from twinline.gateway.logs import told_of
from twinline.gateway.watch import Patience
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

Test = Callable[["At"], Any]


class At:
    """A gateway before doubles that give vectors."""

    def __init__(self, made: Several, doubles: dict[str, VectorDouble]) -> None:
        self.made, self.doubles = made, doubles

    async def embed(self, input_: Any = "hello", model: str = MODEL, **fields: Any) -> httpx.Response:
        body = {"model": model, "input": input_, **fields}
        return await self.made.client.post("/v1/embeddings", json=body)

    async def vectors(self, input_: Any = "hello", **fields: Any) -> list[list[float]]:
        answer = await self.embed(input_, **fields)
        assert answer.status_code == 200, answer.text
        assert [entry["index"] for entry in answer.json()["data"]] == list(range(len(answer.json()["data"])))
        return [entry["embedding"] for entry in answer.json()["data"]]

    def ids(self, text: str) -> list[int]:
        return self.made.tokenizer.encode_whole(text)

    async def refused(self, status: int, param: str | None, input_: Any = "hello", **fields: Any) -> str:
        answer = await self.embed(input_, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), answer.text
        return str(error["message"])


@asynccontextmanager
async def gateway(folder: Path, specs: Sequence[LineSpec], patience: Patience = PATIENCE) -> AsyncIterator[At]:
    doubles = {spec.name: VectorDouble(number, 9) for number, spec in enumerate(specs, 1)}
    urls = {name: await double.start() for name, double in doubles.items()}
    async with asyncio.timeout(60), several(folder, specs, urls=urls, patience=patience) as made:
        yield At(made, doubles)
    for double in doubles.values():
        await double.stop()


def line(name: str = "a", **fields: Any) -> LineSpec:
    return plain(name, **({"embeds": True} | fields))


def run(folder: Path, test: Test, *specs: LineSpec, patience: Patience = PATIENCE) -> None:
    async def main() -> None:
        async with gateway(folder, specs or [line()], patience) as at:
            await test(at)

    uvloop.run(main())


@pytest.fixture(scope="module")
def short(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a model whose `config.json` says more."""

    def make(**config: Any) -> Path:
        folder = tmp_path_factory.mktemp("shorter")
        for file in tiny_folder.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


# What may be asked.


def test_every_form_of_input(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        one, other = at.ids("hello"), at.ids("你好")
        assert one[0] == at.made.tokenizer.bos_id
        expected = [vector_of(one, 1), vector_of(other, 1)]
        assert await at.vectors("hello") == expected[:1]
        assert await at.vectors(["hello", "你好"]) == expected
        assert await at.vectors(one) == expected[:1]
        assert await at.vectors([one, other]) == expected
        answer = (await at.embed(["hello", "你好"], user="me")).json()
        count = len(one) + len(other)
        assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", MODEL, "embedding")

    run(tiny_folder, test)


def test_base64_is_little_endian_float32(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        (said,) = await at.vectors("hello", encoding_format="base64")
        assert isinstance(said, str)
        assert np.frombuffer(base64.b64decode(said), "<f4").tolist() == vector_of(at.ids("hello"), 1)

    run(tiny_folder, test)


def test_what_is_refused(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        assert "input is empty" in await at.refused(400, "input", "")
        assert "empty list" in await at.refused(400, "input", [])
        assert "input[1] is empty" in await at.refused(400, "input", ["a", ""])
        assert "input[0] is empty" in await at.refused(400, "input", [[], [1]])
        assert "a list of such lists" in await at.refused(400, "input", ["a", [1]])
        assert "a list of such lists" in await at.refused(400, "input", [1, "a"])
        assert "outside the model's vocabulary" in await at.refused(400, "input", [[10**6]])
        assert "outside the model's vocabulary" in await at.refused(400, "input", [-1])
        assert f"at most {MAX_INPUTS}" in await at.refused(400, "input", ["a"] * (MAX_INPUTS + 1))
        assert "leave dimensions out" in await at.refused(400, "dimensions", dimensions=2)
        await at.refused(400, "dimensions", dimensions=0)
        await at.refused(400, "encoding_format", encoding_format="uint8")
        await at.refused(400, "input", {"a": 1})
        await at.refused(404, "model", model="another")
        assert not at.doubles["a"].requests

    run(tiny_folder, test)


def test_a_text_of_the_whole_context_and_one_that_is_longer(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        (vector,) = await at.vectors([5] * 64)
        assert vector[1] == 64
        told = await at.refused(400, "input", [[5], [5] * 67])
        assert told == "This model's maximum context length is 64 tokens, but input[1] has 67; shorten it by 3."

    run(tiny_folder, test, line(context=64))


# How it is shared out.


def test_shares_keep_the_order() -> None:
    inputs = [Input([0] * size, None) for size in (9000, 1, 8191, 1, *[4] * (SHARE_INPUTS + 3))]
    cut = list(shares(inputs))
    assert [item for share in cut for item in share] == inputs
    assert [len(share) for share in cut] == [1, 2, SHARE_INPUTS, 4]


def test_many_texts_come_back_in_their_order_from_two_lines(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        texts = [[5 + i % 100, i % 90] for i in range(500)]
        vectors = await at.vectors(texts)
        assert [vector[1:] for vector in vectors] == [vector_of(ids, 0)[1:] for ids in texts]
        asked = [len(request["input"]) for double in at.doubles.values() for request in double.asked]
        assert sum(asked) == 500 and max(asked) == SHARE_INPUTS

    run(tiny_folder, test, line("a", weights_class="w"), line("b", weights_class="w"))


def test_more_values_than_one_answer_has(short: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a line is asked, where the folder or the request says how many they are."""
    monkeypatch.setattr(vectors, "MAX_FLOATS", 2 * SIZE)
    monkeypatch.setattr(vectors, "MAX_BASE64_VALUES", 4 * SIZE)

    async def test(at: At) -> None:
        told = await at.refused(400, "input", ["a", "b", "c"])
        assert told.startswith("3 vectors of 6 values are 18 values; one answer has at most 12")
        await at.refused(400, "input", ["a"] * 5, encoding_format="base64")
        await at.refused(400, "input", ["a"] * 4, dimensions=4)
        assert not at.doubles["a"].asked
        assert len(await at.vectors(["a", "b", "c", "d"], encoding_format="base64")) == 4
        assert len(await at.vectors(["a", "b"])) == 2 and len(await at.vectors(["a", "b", "c"], dimensions=4)) == 3

    run(short(hidden_size=SIZE, is_matryoshka=True), test)


def test_more_values_than_one_answer_has_of_a_size_that_only_the_line_knows(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "MAX_FLOATS", 2 * SIZE)

    async def test(at: At) -> None:
        assert len(await at.vectors(["a", "b"])) == 2
        told = await at.refused(400, "input", ["a", "b", "c"])
        assert told.startswith("3 vectors of 6 values are 18 values; one answer has at most 12")
        assert len(at.doubles["a"].asked) == 2 and at.made.line("a").state is LineState.SERVING

    run(tiny_folder, test)


# Engines that show nothing while they compute.

IMPATIENT = Patience(tick=0.02, quiet=0.1, longest=0.1, first=0.1, ask=2.0, idle=1.0, blind=1.0, slowest=100.0)
UNSEEN = pytest.mark.parametrize("engine", ["openai", "ollama", "llamacpp", "sglang"])


def unseen(engine: str, name: str = "a", **fields: Any) -> LineSpec:
    return line(name, engine=engine, weights=None if engine in ("openai", "ollama") else "nowhere", **fields)


@UNSEEN
def test_an_engine_that_works_unseen_is_given_time_by_its_work(engine: str, tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        at.doubles["a"].count = b"llamacpp:n_decode_total 5\nsglang:prompt_tokens_total 5\n"
        at.doubles["a"].script = lambda request: Reply(delay=2.0)
        assert len(await at.vectors(["hello " * 40] * 8)) == 8
        assert at.made.supply.circuits["a"].closed
        at.doubles["a"].script = lambda request: Reply("hang")
        answer = await at.embed("hello")
        assert answer.status_code == 502 and "computed nothing" in answer.text

    run(tiny_folder, test, unseen(engine), patience=IMPATIENT)


def test_an_engine_whose_count_stands_still_is_given_no_more(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        at.doubles["a"].count = b'{"steps": 5}'
        at.doubles["a"].script = lambda request: Reply(delay=60)
        answer = await at.embed(["hello " * 40] * 8)
        assert answer.status_code == 502 and "computed nothing" in answer.text

    run(tiny_folder, test, line(), patience=IMPATIENT)


def test_each_share_that_comes_says_that_an_engine_lives(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        waits = iter((0.9, 1.8, 2.7))
        at.doubles["a"].script = lambda request: Reply(delay=next(waits))
        assert len(await at.vectors(["a"] * (3 * SHARE_INPUTS))) == 3 * SHARE_INPUTS
        assert len(at.doubles["a"].asked) == 3 and at.made.supply.circuits["a"].closed

    run(tiny_folder, test, unseen("openai"), patience=IMPATIENT)


def test_shares_are_small_where_an_engine_works_unseen(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        await at.vectors([[5] * 300] * 20)
        sizes = {name: [sum(map(len, r["input"])) for r in double.asked] for name, double in at.doubles.items()}
        assert sum(map(sum, sizes.values())) == 6000 and max(max(each, default=0) for each in sizes.values()) == 1800

    assert UNSEEN_TOKENS == 2048
    run(tiny_folder, test, unseen("llamacpp", weights_class="w"), line("b", weights_class="w"))


# What becomes of it when a line does not answer as it should.


@pytest.mark.parametrize("fault", ["reset", "bad_json", "few", "infinite", "size", "status"])
def test_a_line_that_fails_is_replaced_by_another_of_its_weights(fault: str, tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        at.doubles["a"].script = lambda request: Reply(fault)
        texts = ["hello", "there"]
        assert await at.vectors(texts) == [vector_of(at.ids(text), 2) for text in texts]
        assert at.doubles["a"].asked and at.doubles["b"].asked

    run(tiny_folder, test, line("a", weights_class="w"), line("b", weights_class="w"))


def test_a_line_that_goes_out_of_service_in_the_midst(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        at.doubles["a"].script = lambda request: Reply("hang")
        asking = asyncio.create_task(at.vectors("hello"))
        await at.made.until(lambda: at.doubles["a"].asked)
        at.made.to("a", LineState.STOPPED)
        assert await asking == [vector_of(at.ids("hello"), 2)]
        await at.made.until(lambda: at.doubles["a"].closed == 1)

    run(tiny_folder, test, line("a", weights_class="w"), line("b", weights_class="w"))


def test_a_line_of_other_weights_is_never_asked_in_its_place(tiny_folder: Path) -> None:
    """It would be answered, with vectors that compare with nothing that the client has."""

    async def test(at: At) -> None:
        first = await at.embed()
        assert first.json()["data"][0]["embedding"][0] == 1
        at.made.to("a", LineState.STOPPED)
        answer = await at.embed()
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert "line a is stopped" in answer.json()["error"]["message"] and not at.doubles["b"].asked
        named = await at.embed(model=f"{MODEL}@b")
        assert named.json()["data"][0]["embedding"][0] == 2
        marks = [each.headers["x-twinline-weights"] for each in (first, named)]
        assert marks[0] != marks[1] and all(len(mark) == 16 for mark in marks)

    run(tiny_folder, test, line("a", weights_class="bf16"), line("b", weights_class="int4"))


def test_the_order_of_lines_does_not_choose_the_weights(tiny_folder: Path) -> None:
    """A line that is replaced comes last; and gateways hear of lines in different orders."""

    async def test(at: At) -> None:
        assert (await at.vectors())[0][0] == 2

    run(tiny_folder, test, line("b", weights_class="int4"), line("a", weights_class="bf16"))


def test_what_a_line_says_of_the_request_is_the_clients(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        at.doubles["a"].script = lambda request: Reply("status", 400, "this text is bad")
        assert await at.refused(400, None) == "this text is bad"
        at.doubles["a"].script = lambda request: Reply("status", 504, "late", "deadline")
        assert "did not finish" in await at.refused(504, "timeout_s", timeout_s=5)
        at.doubles["a"].script = lambda request: Reply("hang")
        assert "did not finish" in await at.refused(504, "timeout_s", timeout_s=0.05)

    run(tiny_folder, test)


def test_a_client_that_leaves(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        at.doubles["a"].script = lambda request: Reply("hang")
        asking = asyncio.create_task(at.embed())
        await at.made.until(lambda: at.doubles["a"].asked)
        asking.cancel()
        await at.made.until(lambda: at.doubles["a"].closed == 1)
        assert not at.made.line("a").calls

    run(tiny_folder, test)


# What each kind of model is for.


def test_a_model_of_vectors_generates_nothing(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        for answer in (await at.made.chat(), await at.made.complete()):
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, "model", "model_embeds")
            assert "ask it at /v1/embeddings" in error["message"]
        responses = await at.made.client.post("/v1/responses", json={"model": MODEL, "input": "hi"})
        message = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        messages = await at.made.client.post("/v1/messages", json=message)
        assert responses.status_code == messages.status_code == 400
        assert messages.json()["type"] == "error" and "/v1/embeddings" in messages.json()["error"]["message"]
        (listed,) = (await at.made.client.get("/v1/models")).json()["data"]
        assert listed["capabilities"] == {"chat": False, "completions": False, "embeddings": True}

    run(tiny_folder, test)


def test_a_model_that_generates_gives_no_vectors(tiny_folder: Path) -> None:
    async def main() -> None:
        async with several(tiny_folder, ["a"]) as made:
            answer = await made.client.post("/v1/embeddings", json={"model": MODEL, "input": "hi"})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, "model", "model_generates")
            assert "gives no vectors" in error["message"] and "Qwen3-Embedding" in error["message"]

    uvloop.run(main())


# Shorter vectors.


def test_vectors_are_cut_and_normalized_where_the_model_is_known_to_allow_it(short: Callable[..., Path]) -> None:
    async def test(at: At) -> None:
        whole = np.asarray(vector_of(at.ids("hello"), 1))
        (cut,) = await at.vectors(dimensions=4)
        assert np.allclose(cut, whole[:4] / np.linalg.norm(whole[:4]), atol=1e-7) and len(cut) == 4
        assert "dimensions" not in at.doubles["a"].requests[-1]
        assert (await at.vectors(dimensions=SIZE))[0][0] != 1  # of length 1 at full size, too
        told = await at.refused(400, "dimensions", dimensions=SIZE + 1)
        assert told == "dimensions 7 is more than the 6 values of this model's vectors."

    run(short(is_matryoshka=True), test)


def test_the_size_that_vectors_have_is_no_change(short: Callable[..., Path]) -> None:
    """Clients that always say it are many, and a model that is not known to allow another size has that one."""

    async def test(at: At) -> None:
        assert await at.vectors(dimensions=SIZE) == [vector_of(at.ids("hello"), 1)]
        await at.refused(400, "dimensions", dimensions=SIZE - 1)

    run(short(hidden_size=SIZE), test)


def test_the_folders_size_is_asked_of_a_remote_too(short: Callable[..., Path]) -> None:
    """Its own default may be another: then it shortens, or the client is told."""

    async def test(at: At) -> None:
        assert len(await at.vectors(dimensions=SIZE)) == 1
        assert at.doubles["a"].requests[-1]["dimensions"] == SIZE

    run(short(hidden_size=SIZE), test, line(engine="openai", weights=None))


@pytest.mark.parametrize("engine", ["openai", "native"])
def test_vectors_are_not_of_the_size_that_the_folder_says(engine: str, short: Callable[..., Path]) -> None:
    async def test(at: At) -> None:
        told = await at.refused(400, "dimensions", dimensions=SIZE - 1)
        assert told == "Line a gives vectors of 6 values, not of 5: leave dimensions out."
        assert len((await at.vectors())[0]) == SIZE

    weights = {"weights": None} if engine == "openai" else {}
    run(short(hidden_size=SIZE - 1), test, line(engine=engine, **weights))


def test_only_the_sizes_that_a_model_names(short: Callable[..., Path]) -> None:
    async def test(at: At) -> None:
        assert len((await at.vectors(dimensions=2))[0]) == 2
        assert (
            await at.refused(400, "dimensions", dimensions=3) == "dimensions 3 is not one of this model's sizes: 2, 4."
        )

    run(short(matryoshka_dimensions=[4, 2]), test)


# Lines that take text.


def test_a_remote_gets_the_text_and_counts_its_tokens(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        answer = await at.embed(["hello", "there"])
        assert [entry["embedding"] for entry in answer.json()["data"]] == [vector_of(t, 1) for t in ("hello", "there")]
        assert answer.json()["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
        (asked,) = at.doubles["a"].requests
        assert (asked["path"], asked["model"], asked["input"]) == ("/v1/embeddings", "m", ["hello", "there"])
        assert "lacks token_ids" in await at.refused(400, None, [[5, 6]])
        assert "gives vectors of 6 values, not of 3" in await at.refused(400, "dimensions", dimensions=3)
        assert at.doubles["a"].requests[-1]["dimensions"] == 3
        assert len(await at.vectors(dimensions=SIZE)) == 1

    run(tiny_folder, test, line(engine="openai", weights=None))


def test_ollama(tiny_folder: Path) -> None:
    async def test(at: At) -> None:
        assert await at.vectors(["hello"]) == [vector_of("hello", 1)]
        (asked,) = at.doubles["a"].requests
        assert (asked["path"], asked["truncate"], asked["input"]) == ("/api/embed", False, ["hello"])

    run(tiny_folder, test, line(engine="ollama", weights=None))


@pytest.mark.parametrize("engine", ["native", "vllm", "sglang", "llamacpp", "openai", "ollama"])
def test_a_line_is_tested_by_a_vector(engine: str) -> None:
    async def main() -> None:
        from twinline.lines.line import Line, VerificationFailed

        double = VectorDouble()
        spec = line(engine=engine, weights=None if engine in ("openai", "ollama") else "nowhere")
        made = Line("a", spec, await double.start())
        await made.verify()
        assert made.state is LineState.SERVING and len(double.requests) == 1
        assert made.features >= {"embeddings"} and ("token_ids" in made.features) is (made.text_only is False)
        for reply, why in (
            (Reply("status", 501, "start it with --embeddings"), "start it with --embeddings"),
            (Reply("zeros"), "it gave a vector of zeros"),
            (Reply("few"), "0 vectors"),
        ):
            double.script = lambda request, reply=reply: reply
            if made.state is LineState.SERVING:
                made.life.to(LineState.QUARANTINED, "the test says so")
            with pytest.raises(VerificationFailed, match=why):
                await made.verify()
        await double.stop()

    uvloop.run(main())


# Keys, books and the log.


class Told:
    """An observer that keeps what the access log would say."""

    def __init__(self) -> None:
        self.fields: list[dict[str, Any]] = []

    def began(self, exchange: Any, visit: Any) -> None: ...

    def ended(self, exchange: Any, visit: Any) -> None:
        self.fields.append(told_of(exchange, visit))


def test_it_is_metered_as_every_request_is(tiny_folder: Path, tmp_path: Path) -> None:
    """Once, at the line that answered, though another was asked before it; and within its key's limits."""

    async def main() -> None:
        specs = [line("a", weights_class="w"), line("b", weights_class="w", price_per_million_input=2.0)]
        doubles = {spec.name: VectorDouble(number) for number, spec in enumerate(specs, 1)}
        urls = {name: await double.start() for name, double in doubles.items()}
        async with (
            asyncio.timeout(60),
            store(tmp_path) as books,
            several(tiny_folder, specs, urls=urls, access=books.access) as made,
        ):
            told = Told()
            books.access.observers.append(told)
            doubles["a"].script = lambda request: Reply("reset")
            key = books.key("alice", token_budget=200, budget_period="total", models=[MODEL])
            body = {"model": MODEL, "input": [[7] * 50, [8] * 30]}
            name = {"x-request-id": "mine"}
            answer = await made.client.post("/v1/embeddings", json=body, headers=key | name)
            assert answer.status_code == 200 and answer.headers["x-request-id"] == "mine"
            used = books.used("key", "line")
            (row,) = [row for (_, at), row in used.items() if at == "b"]
            assert (row.prompt_tokens, row.completion_tokens, row.requests) == (80, 0, 1)
            assert row.cost == pytest.approx(80 * 2 / 1e6)
            assert sum(each.prompt_tokens for each in used.values()) == 80
            over = await made.client.post("/v1/embeddings", json={**body, "input": [[7] * 130]}, headers=key)
            assert (over.status_code, over.json()["error"]["code"]) == (429, "insufficient_quota")
            assert (await made.client.post("/v1/embeddings", json=body)).status_code == 401
            other = books.key("other", models=["another"])
            assert (await made.client.post("/v1/embeddings", json=body, headers=other)).status_code == 403
            first = told.fields[0]
            expected = {"key": "alice", "lines": "a,b", "status": 200, "outcome": "finished", "moves": 1,
                        "prompt_tokens": 80, "completion_tokens": 0, "request_id": "mine"}  # fmt: skip
            assert {name: first[name] for name in expected} == expected
            assert first["ttft_seconds"] is not None
        for double in doubles.values():
            await double.stop()

    uvloop.run(main())
