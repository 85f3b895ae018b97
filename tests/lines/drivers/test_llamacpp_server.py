"""A real llama-server, as our driver starts it, beside our own engine: the same model, the same tokens.

Runs where TWINLINE_LLAMA_SERVER names a server built by `scripts/build-llama-server TARGET --model`; the model's GGUF
lies beside it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
from tests.lines.drivers.replay import ask

from twinline.lines.client import LineClient
from twinline.lines.drivers import driver
from twinline.lines.drivers.pieces import pieces
from twinline.lines.protocol import LineError, LineRefused, TextSource, TokenRequest
from twinline.lines.spec import LineSpec

SERVER = Path(os.environ.get("TWINLINE_LLAMA_SERVER", ""))
GGUF = SERVER.parent / "tiny-r1.gguf"
TINY = Path(str(files("twinline") / "models" / "tiny-r1"))
pytestmark = pytest.mark.skipif(
    not (SERVER.is_file() and GGUF.is_file()),
    reason="TWINLINE_LLAMA_SERVER names no llama-server with tiny-r1.gguf beside it (see scripts/build-llama-server)",
)
PROMPT = [0, 3, 83, 118, 122, 39, 114, 4, 5, 17]
LLAMACPP, NATIVE = driver("llamacpp"), driver("native")
START_SECONDS = 60.0


def spec(engine: str, **fields: object) -> LineSpec:
    weights = str(GGUF if engine == "llamacpp" else TINY)
    return LineSpec(**{"name": "a", "model": "m", "engine": engine, "weights": weights, "context": 512} | fields)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Started:
    """An engine of a driver's command, up until the tests are over."""

    def __init__(self, line: LineSpec) -> None:
        self.driver = driver(line.engine)
        self.driver.check(line)
        port = free_port()
        command = self.driver.command(line, port)
        self.process = subprocess.Popen(
            command.argv, env={**os.environ, **command.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.url = f"http://127.0.0.1:{port}"
        self.dialect = self.driver.dialect(line)

    async def up(self, client: LineClient) -> None:
        assert self.driver.health_path is not None
        async with asyncio.timeout(START_SECONDS):
            while True:
                assert self.process.poll() is None, f"it ended with code {self.process.returncode}"
                try:
                    status, _ = await client.ask("GET", self.driver.health_path)
                except LineError:
                    status = 0
                if status == 200:
                    return
                await asyncio.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[Started]:
    started = Started(spec("llamacpp", slots=2, options={"executable": str(SERVER), "threads": 1}))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def native() -> Iterator[Started]:
    started = Started(spec("native", context=None, options={"threads": 1}))
    yield started
    started.stop()


def answer(engine: Started, request: TokenRequest) -> tuple[list[int], str | None, int | None]:
    async def read() -> tuple[list[int], str | None, int | None]:
        client = LineClient(engine.url, engine.dialect)
        await engine.up(client)
        tokens, finish, counted = [], None, None
        async for delta in client.stream(request):
            tokens += delta.tokens
            finish = delta.finish_reason or finish
            counted = delta.usage.completion_tokens if delta.usage else counted
        return tokens, finish, counted

    return asyncio.run(read())


# Our engine samples end tokens when it ignores them, llama.cpp bans them: with a bias both never do.
ON_AND_ON = {"1": -100.0}


@pytest.mark.parametrize(
    "fields",
    [{}, {"frequency_penalty": 0.7}, {"repetition_penalty": 1.3}],
    ids=["greedy", "frequency penalty", "repetition penalty"],
)
def test_it_gives_the_tokens_of_our_engine_and_goes_on_with_its_answers(
    llamacpp: Started, native: Started, fields: dict[str, float]
) -> None:
    request = ask(prompt=PROMPT, max_tokens=48, logit_bias=ON_AND_ON, **fields)
    ours, _, _ = answer(native, msgspec.structs.replace(request, request_id="whole"))
    assert answer(llamacpp, request) == (ours, "length", 48)
    moved = msgspec.structs.replace(request, output_prefix_ids=ours[:17])
    assert answer(llamacpp, moved)[0] == ours[17:]
    back = msgspec.structs.replace(request, output_prefix_ids=ours[:30], request_id="back")
    assert answer(native, back)[0] == ours[30:]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_sampling_parameters_arrive(llamacpp: Started, narrow: dict[str, float]) -> None:
    """Each of them, drawn narrow, leaves the likeliest token alone; wide open, hot draws differ from it."""
    likeliest = answer(llamacpp, ask(prompt=PROMPT, max_tokens=24, logit_bias=ON_AND_ON))[0]
    hot = ask(prompt=PROMPT, max_tokens=24, logit_bias=ON_AND_ON, temperature=2.0, seed=1)
    assert answer(llamacpp, msgspec.structs.replace(hot, **narrow))[0] == likeliest
    assert answer(llamacpp, hot)[0] == answer(llamacpp, hot)[0] != likeliest


def test_no_token_is_lost_inside_characters(llamacpp: Started) -> None:
    """A character of three tokens, forced by biases and a penalty that exceeds their steps; only the last is sent."""
    table = pieces(TINY)
    tokens = [table.token_of[bytes([byte])] for byte in "字".encode()]
    assert len(set(tokens)) == 3
    biases = {str(token): bias for token, bias in zip(tokens, (3e5, 2e5, 1e5), strict=True)}
    request = ask(prompt=PROMPT, max_tokens=3, frequency_penalty=2.5e5, logit_bias=biases, ignore_eos=True)
    assert answer(llamacpp, request) == (tokens, "length", 3)


def test_a_stop_token_of_ours_ends_the_answer(llamacpp: Started) -> None:
    free = answer(llamacpp, ask(prompt=PROMPT, max_tokens=12, logit_bias=ON_AND_ON))[0]
    stop = free[5]
    tokens, finish, _ = answer(llamacpp, ask(prompt=PROMPT, max_tokens=12, logit_bias=ON_AND_ON, stop_token_ids=[stop]))
    assert (tokens, finish) == (free[: free.index(stop) + 1], "stop")


def test_as_a_remote_it_goes_on_with_a_text(llamacpp: Started) -> None:
    """The same server behind the driver of remotes: chat, and an answer taken over in its middle."""
    remote = LineSpec(
        name="r",
        model="m",
        engine="openai",
        url=f"{llamacpp.url}/v1",
        options={"continuation": "continue_final_message"},
    )
    driver("openai").check(remote)
    dialect = driver("openai").dialect(remote)
    source = TextSource({"messages": [{"role": "user", "content": "What is 12 + 30?"}], "temperature": 0}, True)

    async def read(shown: str = "") -> str:
        client = LineClient(f"{llamacpp.url}/v1", dialect)
        await llamacpp.up(LineClient(llamacpp.url))
        text, finish = "", None
        async for delta in client.stream(ask(), msgspec.structs.replace(source, shown=shown)):
            text += delta.text
            finish = delta.finish_reason or finish
        assert finish == "stop"
        return text

    answer = asyncio.run(read())
    assert answer.endswith("42")
    assert asyncio.run(read(answer[:9])) == answer[9:]


def test_what_it_says_of_itself(llamacpp: Started) -> None:
    async def asked() -> None:
        client = LineClient(llamacpp.url, llamacpp.dialect)
        await llamacpp.up(client)
        status, metrics = await client.ask("GET", "/metrics")
        assert status == 200
        found = LLAMACPP.metrics(metrics)
        assert found.waiting == 0
        assert None not in (found.running, found.prompt_tokens, found.generation_tokens, found.progress)
        assert LLAMACPP.facts({"data": await client.models()}) == {"max_model_len": 512, "vocab_size": 1024}
        with pytest.raises(LineRefused, match="exceeds the available context size"):
            [delta async for delta in client.stream(ask(prompt=[5] * 600))]

    asyncio.run(asked())


def test_its_slots_do_not_take_each_others_room(llamacpp: Started) -> None:
    async def both() -> list[int]:
        client = LineClient(llamacpp.url, llamacpp.dialect)
        await llamacpp.up(client)

        async def one(seed: int) -> int:
            request = ask(prompt=[*PROMPT, seed], max_tokens=480, logit_bias=ON_AND_ON)
            return sum([len(delta.tokens) async for delta in client.stream(request)])

        return await asyncio.gather(one(40), one(41), one(42))

    assert asyncio.run(both()) == [480] * 3


def test_closing_the_stream_ends_the_work(llamacpp: Started) -> None:
    async def closed() -> None:
        client = LineClient(llamacpp.url, llamacpp.dialect)
        await llamacpp.up(client)
        stream = client.stream(ask(prompt=PROMPT, max_tokens=400, logit_bias=ON_AND_ON))
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(20):
            while LLAMACPP.metrics((await client.ask("GET", "/metrics"))[1]).running:
                await asyncio.sleep(0.05)

    asyncio.run(closed())
