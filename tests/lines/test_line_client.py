"""The line client against a double: every way an answer can come, and every way it can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
import uvloop
from tests.lines.line_double import LineDouble, Script, logprob

from twinline.lines import client as protocol
from twinline.lines.client import LineClient
from twinline.lines.protocol import LineBroken, LineRefused, TokenRequest
from twinline.lines.wire import Chunk, Delta, EventLines, TokenLogprob, to_delta


def run(test: Callable[[LineDouble, LineClient], Awaitable[None]], path: str | None = None) -> None:
    async def whole() -> None:
        double = LineDouble()
        client = LineClient(await double.start(path))
        try:
            async with asyncio.timeout(10):
                await test(double, client)
        finally:
            await double.stop()

    for runner in (asyncio.run, uvloop.run):
        runner(whole())


def ask(**fields: object) -> TokenRequest:
    return msgspec.structs.replace(TokenRequest(model="m", prompt=[1, 2, 3], request_id="r"), **fields)


async def collect(client: LineClient, request: TokenRequest) -> list[Delta]:
    async with aclosing(client.stream(request)) as deltas:
        return [delta async for delta in deltas]


@pytest.mark.parametrize("unix", [False, True])
def test_stream_gives_every_token_and_usage(unix: bool, tmp_path: Path) -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        double.script = lambda request: Script(tokens=list(range(20)), per_chunk=3)
        deltas = await collect(client, ask(max_tokens=20, output_prefix_ids=[0, 1]))
        assert [token for delta in deltas for token in delta.tokens] == list(range(2, 20))
        assert deltas[0].prompt_tokens == [1, 2, 3]
        assert [d.finish_reason for d in deltas if d.finish_reason] == ["length"]
        usage = next(d.usage for d in deltas if d.usage)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 18, 3)
        sent = double.requests[0]
        assert sent["return_token_ids"] is sent["return_tokens_as_token_ids"] is True
        assert sent["stream"] and sent["stream_options"] == {"include_usage": True}

    run(test, str(tmp_path / "s") if unix else None)


def test_logprobs_are_by_token_id_best_first() -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        deltas = await collect(client, ask(logprobs=2, prompt_logprobs=1))
        entries = [entry for delta in deltas for entry in delta.logprobs or ()]
        assert [entry.token for entry in entries] == [10, 11, 12]
        assert entries[0].logprob == logprob(10)
        assert [token for token, _ in entries[0].top] == [11, 10, 12]
        prompt = deltas[0].prompt_logprobs
        assert prompt is not None and prompt[0] is None
        assert [entry.token for entry in prompt[1:] if entry] == [2, 3]

    run(test)


def test_an_impossible_token_is_null_on_the_wire() -> None:
    chunk = msgspec.json.decode(
        b'{"choices": [{"token_ids": [5], "prompt_token_ids": [1, 2], '
        b'"prompt_logprobs": [null, {"2": {"logprob": null}}],'
        b' "logprobs": {"token_logprobs": [null], "top_logprobs": [{"token_id:7": -0.1, "token_id:5": null}]}}]}',
        type=Chunk,
    )
    delta = to_delta(chunk)
    assert delta.logprobs == [TokenLogprob(5, -9999.0, ((7, -0.1), (5, -9999.0)))]
    assert delta.prompt_logprobs == [None, TokenLogprob(2, -9999.0, ((2, -9999.0),))]


@pytest.mark.parametrize(
    "choice",
    [
        b'{"token_ids": [5], "logprobs": {"token_logprobs": []}}',
        b'{"token_ids": [5], "prompt_logprobs": [null]}',
        b'{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"7": {"logprob": -1}}]}',
    ],
)
def test_parts_that_do_not_fit_together_are_told(choice: bytes) -> None:
    chunk = msgspec.json.decode(b'{"choices": [' + choice + b"]}", type=Chunk)
    with pytest.raises(ValueError, match=r"prompt_logprobs|log-probabilities"):
        to_delta(chunk)


def test_a_refusal_keeps_status_code_and_retry_after() -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        double.script = lambda request: Script(fault="refuse", headers={"Retry-After": "7"})
        with pytest.raises(LineRefused) as caught:
            await collect(client, ask())
        assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "queue_full", "7")

    run(test)


@pytest.mark.parametrize("fault", ["reset", "end", "bad_json", "in_band"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_break_comes_after_the_tokens_before_it(fault: str, after: int) -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        double.script = lambda request: Script(fault=fault, fault_after=after, delay=0.01)
        tokens: list[int] = []
        with pytest.raises(LineBroken):
            async with aclosing(client.stream(ask())) as deltas:
                async for delta in deltas:
                    tokens += delta.tokens
        assert tokens == [10, 11, 12][:after]

    run(test)


def test_a_failure_after_the_finish_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "AFTER_FINISH_SECONDS", 0.05)

    async def test(double: LineDouble, client: LineClient) -> None:
        double.script = lambda request: Script(fault="mute_end")
        deltas = await collect(client, ask())
        assert deltas[-1].finish_reason == "length" and deltas[-1].usage is None

    run(test)


def test_a_silent_line_breaks_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DEADLINE_GRACE_SECONDS", 0.05)

    async def test(double: LineDouble, client: LineClient) -> None:
        double.script = lambda request: Script(fault="hang")
        with pytest.raises(LineBroken) as caught:
            await collect(client, ask(timeout_s=0.05))
        assert caught.value.code == "deadline"

    run(test)


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_the_stream_aborts_the_request(how: str) -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        double.script = lambda request: Script(fault="hang", fault_after=1)
        stream = client.stream(ask())
        assert (await anext(stream)).tokens == [10]
        assert double.active == 1
        if how == "cancel":
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await stream.aclose()
        while double.active:
            await asyncio.sleep(0.005)
        assert double.aborted == ["r"]

    run(test)


def test_nobody_there_is_a_refusal() -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        await double.stop()
        with pytest.raises(LineRefused) as caught:
            await collect(client, ask())
        assert (caught.value.status, caught.value.code) == (503, "line_unreachable")

    run(test)


def test_questions() -> None:
    async def test(double: LineDouble, client: LineClient) -> None:
        assert (await client.models())[0]["max_model_len"] == 1024
        assert await client.health() == (True, {"status": "ok", "steps": 5})
        assert "vllm:num_requests_running" in await client.metrics_text()

    run(test)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "unix://", ""])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        LineClient(url)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_events_do_not_depend_on_how_the_bytes_are_cut(size: int) -> None:
    data = b': hello\ndata: {"a": 1}\r\n\r\nevent: x\ndata: two\n\ndata:[DONE]\n\n'
    events = EventLines()
    found = [event for at in range(0, len(data), size) for event in events.feed(data[at : at + size])]
    assert found == [b'{"a": 1}', b"two", b"[DONE]"]
