"""The official client, as users have it."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from tests.gateway.harness import MODEL, Gateway
from tests.lines.line_double import Script

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(door: Gateway) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, http_client=http)


def test_whole_and_streamed(door: Gateway, client: openai.OpenAI) -> None:
    door.says("Think.</think>Hello you")
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    message = answer.choices[0].message
    assert message.content == "Hello you" and message.model_extra == {"reasoning_content": "Think."}
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello you"
    assert chunks[-1].usage == answer.usage
    text = client.completions.create(model=MODEL, prompt="x", stream=True)
    assert "".join(c.choices[0].text for c in text) == "Think.</think>Hello you"


def test_the_clients_own_stream_helper_and_logprobs(door: Gateway, client: openai.OpenAI) -> None:
    tokens = door.says("</think>abc")
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "abc"
    logprobs = final.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == len(tokens)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == (MODEL, "twinline")
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 256 and model.model_extra["label"] == "demonstration"
    assert model.model_extra["capabilities"] == {"chat": True, "completions": True, "embeddings": False}
    assert client.models.retrieve(MODEL) == model


def test_errors_are_the_clients_own(door: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    door.double.script = lambda request: Script(fault="refuse")
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    door.double.script = lambda request: Script(list(range(10, 30)), fault="reset", fault_after=2, delay=0.01)
    with pytest.raises(openai.APIError, match=r"could not be continued: (it broke 4 times|no line was free)"):
        list(client.completions.create(model=MODEL, prompt="x", stream=True))


def test_sixty_four_at_once_do_not_mix(door: Gateway) -> None:
    def script(request: dict[str, Any]) -> Script:
        asked = door.tokenizer.decode(request["prompt"])
        ids = door.tokenizer.encode(f"</think>echo {asked}", special=False)
        return Script(tokens=[*ids, *door.tokenizer.eos_ids], delay=0.001)

    door.double.script = script

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        messages: Any = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            answer = await client.chat.completions.create(model=MODEL, messages=messages)
            text = answer.choices[0].message.content or ""
        else:
            stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text.startswith(f"echo number {number}<think>")

    async def all_of_them() -> None:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{door.url}/v1", api_key="none", max_retries=0, http_client=http
        ) as client:
            await asyncio.gather(*(one(client, number) for number in range(64)))

    asyncio.run(all_of_them())
    assert door.double.active == 0


def test_leaving_a_stream_frees_the_line(door: Gateway, client: openai.OpenAI) -> None:
    door.double.script = lambda request: Script(fault="hang", fault_after=1)
    stream = client.completions.create(model=MODEL, prompt="x", stream=True)
    next(iter(stream))
    stream.close()
    door.until(lambda: door.double.active == 0)
    assert len(door.double.aborted) == 1
