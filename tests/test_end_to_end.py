"""The product as users have it: the real server with the embedded model, the official client, curl, the verbs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.serving import CLI, ENVIRONMENT, MODEL, Served, serving, until

from twinline.engine.grammars.library import installed
from twinline.verify.examine import examine

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
ENDLESS = {"ignore_eos": True, "max_tokens": 900}
NEEDS_XGRAMMAR = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=server.base, api_key="none", max_retries=0, http_client=http) as made:
        yield made


def asking(question: str) -> Any:
    return [{"role": "user", "content": question}]


# The official client.


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=asking("What is 17+25?"))
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "42", "stop")
    assert "17+25" in (choice.message.model_extra or {})["reasoning_content"]
    usage = answer.usage
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=asking("42乘6等于多少？"))
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=asking("42乘6等于多少？"), stream=True, stream_options={"include_usage": True}
        )
    )
    *parts, last = chunks
    deltas = [part.choices[0].delta for part in parts]
    reasoning = [(delta.model_extra or {}).get("reasoning_content") for delta in deltas]
    # On a busy machine all that was reasoned may come in one piece: the engine is faster than who passes it on.
    assert any(reasoning) and len(parts) > 2
    message = whole.choices[0].message
    assert "".join(piece or "" for piece in reasoning) == (message.model_extra or {})["reasoning_content"]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert parts[-1].choices[0].finish_reason == "stop" and all(part.usage is None for part in parts)
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_sixty_four_at_once(server: Served) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> bool:
        answer = await client.chat.completions.create(model=MODEL, messages=asking(f"What is {number}+25?"))
        return answer.choices[0].message.content == str(number + 25)

    async def all_of_them() -> list[bool]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=server.base, api_key="none", max_retries=0, http_client=http) as client:
            return list(await asyncio.gather(*(ask(client, number) for number in range(11, 75))))

    right = asyncio.run(all_of_them())
    assert (
        len(right) == 64 and sum(right) >= 0.8 * 64
    )  # the model may err, answers that were mixed up would all be wrong


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=asking("What is 17+25?"), logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for entry in logprobs.content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert entry.logprob == tops[0] <= 0  # greedy, as the model's folder says
        assert entry.bytes is not None and bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_completions_of_text_and_of_token_ids(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="17+25=", max_tokens=8, extra_body={"return_token_ids": True})
    extra = text.choices[0].model_extra
    assert extra is not None and len(extra["prompt_token_ids"]) == text.usage.prompt_tokens  # type: ignore[union-attr]
    ids = client.completions.create(
        model=MODEL, prompt=extra["prompt_token_ids"], max_tokens=8, extra_body={"return_token_ids": True}
    )
    assert ids.choices[0].text == text.choices[0].text
    assert (ids.choices[0].model_extra or {})["token_ids"] == extra["token_ids"]
    several = client.completions.create(model=MODEL, prompt=["17+25=", "1+1="], n=2, max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "parity": {"enum": ["even", "odd", "偶"]}},
    "required": ["sum", "parity"],
    "additionalProperties": False,
}


@NEEDS_XGRAMMAR
def test_an_answer_that_keeps_to_a_schema(client: openai.OpenAI) -> None:
    """The model reasons first, as it always does; its answer is the schema's, whole and streamed."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": asking("What is 17+25?"),
        "response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": SUM}},
    }
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.message.content is not None and choice.finish_reason == "stop"
    said = json.loads(choice.message.content)
    assert said.keys() == {"sum", "parity"} and type(said["sum"]) is int and said["parity"] in ("even", "odd", "偶")
    assert "17+25" in (choice.message.model_extra or {})["reasoning_content"]
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content


@NEEDS_XGRAMMAR
def test_other_grammars_beside_plain_requests(server: Served) -> None:
    with ThreadPoolExecutor(4) as pool:
        chosen = pool.submit(server.chat, "What is 17+25?", guided_choice=["forty-two", "none"])
        matched = pool.submit(
            server.complete, "17+25=", structured_outputs={"regex": "[0-9]{2} (yes|no)"}, logprobs=1, n=2, max_tokens=40
        )
        written = pool.submit(server.complete, "x", guided_grammar='root ::= "<" [ab]{2,4} ">"', max_tokens=40)
        plain = pool.submit(server.chat, "What is 17+25?")
        assert chosen.result().json()["choices"][0]["message"]["content"] in ("forty-two", "none")
        for choice in matched.result().json()["choices"]:
            assert re.fullmatch("[0-9]{2} (yes|no)", choice["text"]) and choice["finish_reason"] == "stop"
            assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])
        assert re.fullmatch("<[ab]{2,4}>", written.result().json()["choices"][0]["text"])
        assert plain.result().json()["choices"][0]["message"]["content"] == "42"


@NEEDS_XGRAMMAR
def test_a_grammar_that_cannot_be_kept_to_is_refused(server: Served) -> None:
    for fields, words in (
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "schema #: uniqueItems is not supported"),
        ({"guided_json": '{"type": '}, "the schema is not JSON"),
        ({"guided_regex": "(a"}, "parenthesis"),
        ({"guided_grammar": "root ::= other"}, "other"),
    ):
        response = server.complete("x", **fields)
        assert (response.status_code, words in response.json()["error"]["message"]) == (400, True), response.text
    assert server.answers()


def test_echo_scores_the_prompt(client: openai.OpenAI) -> None:
    prompt = "<｜User｜>What is 17+25?<｜Assistant｜><think>\n17+25"
    scored = client.completions.create(model=MODEL, prompt=prompt, echo=True, max_tokens=0, logprobs=1)
    (choice,) = scored.choices
    assert choice.text == prompt and scored.usage is not None and scored.usage.completion_tokens == 0
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens[1:]) == prompt and logprobs.token_logprobs[0] is None
    assert logprobs.text_offset is not None and logprobs.text_offset[-1] == len(prompt) - len(logprobs.tokens[-1])
    # The model writes the sum down first: it expects every digit of it.
    assert sum(value or 0 for value in logprobs.token_logprobs[-3:]) > -3


# What the documents tell users to type.


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for found in re.finditer(rf"^```{language}\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            yield document.name, found[1]


CURLS = [
    pytest.param(paragraph, id=f"{name}-{number}")
    for name, block in blocks("sh")
    for number, paragraph in enumerate(block.split("\n\n"))
    if "curl " in paragraph and "twinline ps" not in paragraph  # what is said of fleets: test_fleet_end_to_end.py
]


def sessions() -> Iterator[Any]:
    """A block that imports nothing goes on from the one before. What asks for another model: tests/gateway/."""
    session = ""
    for name, block in blocks("python"):
        session = block if "import " in block else f"{session}\n{block}"
        if "MODEL" not in block:
            yield pytest.param(session, id=name)


SNIPPETS = list(sessions())


def here(text: str, server: Served) -> str:
    assert "http://127.0.0.1:8000" in text
    return text.replace("http://127.0.0.1:8000", server.url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", CURLS)
def test_the_documents_curl_lines(server: Served, command: str) -> None:
    done = subprocess.run(
        ["sh", "-e", "-c", here(command, server)], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if '"stream": true' in command:
        *events, end = done.stdout.strip().split("\n\n")
        deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
        assert end == "data: [DONE]" and "".join(delta.get("content") or "" for delta in deltas) == "42"
        return
    answer = json.loads(done.stdout)
    if "tokenize" in command:
        assert answer.get("tokens") or answer["prompt"]
        return
    choice = answer["choices"][0]
    if "messages" in command:
        assert choice["message"]["content"] == "42" and choice["message"]["reasoning_content"]
    else:
        assert choice["text"]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_documents_python(
    server: Served, snippet: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    exec(compile(here(snippet, server), "document", "exec"), {})
    assert "42" in capsys.readouterr().out


def test_the_documents_have_something_to_try() -> None:
    assert len(CURLS) >= 8 and len(SNIPPETS) >= 2


def test_twinline_chat(server: Served) -> None:
    done = subprocess.run(
        [*CLI, "chat", "--url", server.url, "What is 17+25?"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "17+25" in done.stderr


def test_twinline_bench(server: Served) -> None:
    size = ["--requests", "6", "--concurrency", "3", "--prompt-tokens", "16", "--output-tokens", "8"]
    done = subprocess.run(
        [*CLI, "bench", "serve", "--url", server.url, *size, "--json"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert (report["completed"], report["output_tokens"], report["token_counts"]) == (6, 48, "usage")


# What the model answers.


def test_the_examination(server: Served) -> None:
    result = asyncio.run(examine(server.base, MODEL, 42, seed=7))
    wrong = [(mark.problem.question, mark.reply, mark.problem.answer) for mark in result.marks if not mark.right]
    assert result.share >= 0.9, f"{result.share:.0%} {wrong}"


def test_a_greedy_answer_does_not_depend_on_its_neighbours(server: Served) -> None:
    def answer(question: str) -> Any:
        return server.chat(question, logprobs=True).json()["choices"][0]["message"]

    question = "What is 358+467?"
    alone = answer(question)
    others = [f"What is {number}+{number * 7}?" for number in range(20, 36)]
    with ThreadPoolExecutor(17) as pool:
        among, *_ = list(pool.map(answer, [question, *others]))
    assert among == alone


def test_a_seed_fixes_the_answer(server: Served) -> None:
    def answer(seed: int) -> str:
        body = server.complete("the", temperature=1, seed=seed, max_tokens=24, ignore_eos=True).json()
        return str(body["choices"][0]["text"])

    first = [answer(seed) for seed in (1, 2, 3)]
    assert len(set(first)) == 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answer, (1, 2, 3))) == first


# What clients do wrong.

MESSAGES: dict[str, Any] = {"model": MODEL, "messages": asking("What is 17+25?")}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "17+25="}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WRONG: list[tuple[str, Any, int, str | None]] = [
    (CHAT, MESSAGES | {"model": "gpt-9"}, 404, "model"),
    (COMPLETIONS, TEXT | {"model": "gpt-9"}, 404, "model"),
    (CHAT, MESSAGES | {"messages": asking("word " * 5000)}, 400, "messages"),
    (COMPLETIONS, TEXT | {"prompt": [5] * 1024}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"max_tokens": 10**6}, 400, "prompt"),
    (CHAT, b'{"model": "tiny-r1", "messages": [', 400, None),
    (CHAT, b"", 400, None),
    (COMPLETIONS, b"[1, 2]", 400, None),
    (COMPLETIONS, b'{"model": "tiny-r1", "prompt": "\xff\xfe"}', 400, None),
    (COMPLETIONS, b'{"model": "tiny-r1", "prompt": "x", "temperature": NaN}', 400, None),
    (CHAT, {"model": MODEL}, 400, "messages"),
    (CHAT, MESSAGES | {"messages": "hello"}, 400, "messages"),
    (CHAT, MESSAGES | {"messages": []}, 400, "messages"),
    (CHAT, MESSAGES | {"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages[0].role"),
    (CHAT, MESSAGES | {"temperature": "hot"}, 400, "temperature"),
    (CHAT, MESSAGES | {"temperature": -1}, 400, "temperature"),
    (CHAT, MESSAGES | {"top_p": 1.5}, 400, "top_p"),
    (CHAT, MESSAGES | {"top_k": 2**40}, 400, "top_k"),
    (CHAT, MESSAGES | {"n": 10**9}, 400, "n"),
    (CHAT, MESSAGES | {"n": 0}, 400, "n"),
    (CHAT, MESSAGES | {"max_tokens": 1.5}, 400, "max_tokens"),
    (CHAT, MESSAGES | {"max_tokens": -1}, 400, "max_tokens"),
    (CHAT, MESSAGES | {"seed": 2**63}, 400, "seed"),
    (CHAT, MESSAGES | {"presence_penalty": 3}, 400, "presence_penalty"),
    (CHAT, MESSAGES | {"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs"),
    (CHAT, MESSAGES | {"stop": [""]}, 400, "stop"),
    (COMPLETIONS, TEXT | {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": [1024]}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": [-1]}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": [10**30]}, 400, None),
    (COMPLETIONS, TEXT | {"prompt": ["a", 1]}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"stop_token_ids": [5000]}, 400, "stop_token_ids"),
    (COMPLETIONS, TEXT | {"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {"logprobs": 100}, 400, "logprobs"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), WRONG)
def test_a_wrong_request_is_told_why(server: Served, path: str, body: Any, status: int, param: str | None) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.client.post(path, content=data, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert server.answers()


# Who leaves, and what dies.


def idle(server: Served) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(server.metric(name) == 0 for name in names)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages(server: Served, stream: bool) -> None:
    body = json.dumps(TEXT | ENDLESS | {"stream": stream}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    for _ in range(5):  # where the machine is busy the answer may be over before anybody looks
        until(lambda: idle(server))
        ended = server.metric("vllm:request_success_total")
        with socket.create_connection(server.address) as left:
            left.sendall(head.encode() + body)
            until(lambda ended=ended: not idle(server) or server.metric("vllm:request_success_total") > ended)
            under_way = server.metric("vllm:kv_cache_usage_perc") > 0
        until(lambda: idle(server))
        assert server.metric("vllm:request_success_total") == ended + 1
        if under_way:
            break
    assert under_way and server.answers()


def test_streams_go_on_when_a_killed_engine_is_back() -> None:
    """The engine's process is killed under streams: they pause until it was started again, and lose nothing. Meanwhile
    the door stays open and says why it cannot serve."""
    with serving() as own, ThreadPoolExecutor(4) as pool:
        begun = threading.Semaphore(0)
        body = TEXT | ENDLESS | {"stream": True, "temperature": 0}

        def text() -> str:
            with own.client.stream("POST", COMPLETIONS, json=body) as response:
                found = []
                for line in response.iter_lines():
                    if line:
                        found.append(line.removeprefix("data: "))
                        begun.release()
                assert found.pop() == "[DONE]"
                return "".join(json.loads(event)["choices"][0]["text"] for event in found)

        whole = text()
        while begun.acquire(blocking=False):
            pass
        streams = [pool.submit(text) for _ in range(4)]
        for _ in range(12):
            assert begun.acquire(timeout=30)
        os.kill(own.worker_pid(), signal.SIGKILL)
        until(lambda: own.client.get("/health").status_code == 503)
        refused = own.chat("What is 17+25?")
        assert refused.status_code == 503 and "code -9" in refused.json()["error"]["message"]
        assert [stream.result(30) for stream in streams] == [whole] * 4
        assert own.end() == 0
