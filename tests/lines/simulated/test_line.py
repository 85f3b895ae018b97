"""A simulated line over loopback: the line protocol to the letter, and every failure as a client sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.faults import Fault
from twinline.lines.simulated.http import Connection
from twinline.lines.simulated.line import Line
from twinline.lines.simulated.teacher import Teacher

FAST = Chip(name="test", decode_tokens_per_second=2000, prefill_tokens_per_second=1e6, slots=8, max_waiting=4,
            max_model_len=512, kv_tokens=8192)  # fmt: skip
TEACHER = Teacher([[10, 11, 12, 13], [20, 21, 22, 23, 24], [30, 31]], end=frozenset({1}))
PROMPT = [5, 6, 7]


def expected(count: int, prefix: list[int] = []) -> list[int]:  # noqa: B006
    answer, tokens = TEACHER.answer(PROMPT, 0, prefix), []
    for _ in range(count):
        tokens.append(answer.next())
        answer.take(tokens[-1])
    return tokens


@dataclass
class Got:
    """What came back. `ended`: `whole` by the rules of HTTP, `fin`, `reset`, or `silent` after a second."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: str = "whole"

    @property
    def events(self) -> list[bytes]:
        return [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]

    @property
    def tokens(self) -> list[int]:
        chunks = [json.loads(event) for event in self.events if event.startswith(b"{") and event.endswith(b"}")]
        return [token for chunk in chunks for choice in chunk.get("choices", ()) for token in choice["token_ids"]]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    line: Line
    port: int

    async def ask(self, method: str, path: str, body: object = None, silence: float = 20.0) -> Got:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else json.dumps(body).encode()
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        got = Got()
        try:
            async with asyncio.timeout(30):
                await self._read(reader, got, silence)
        except ConnectionResetError:
            got.ended = "reset"
        except asyncio.IncompleteReadError:
            got.ended = "fin"
        except TimeoutError:
            got.ended = "silent"
        finally:
            writer.close()
        return got

    async def _read(self, reader: asyncio.StreamReader, got: Got, silence: float) -> None:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), silence)).decode().split("\r\n")
        got.status = int(head[0].split()[1])
        got.headers = dict(line.split(": ", 1) for line in head[1:] if line)
        if "content-length" in got.headers:
            got.body = await reader.readexactly(int(got.headers["content-length"]))
            return
        while True:
            size = int(await asyncio.wait_for(reader.readuntil(b"\r\n"), silence), 16)
            got.body += (await asyncio.wait_for(reader.readexactly(size + 2), silence))[:-2]
            if not size:
                return

    async def stream(self, count: int = 20, silence: float = 20.0, **more: Any) -> Got:
        body = {"model": "m", "prompt": PROMPT, "max_tokens": count, "ignore_eos": True, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}, **more}  # fmt: skip
        return await self.ask("POST", "/v1/completions", body, silence)

    async def simulate(self, mode: str, **more: Any) -> Got:
        return await self.ask("POST", "/simulate", {"mode": mode, **more})


@asynccontextmanager
async def running(chip: Chip = FAST, fault: Fault | None = None) -> AsyncIterator[Client]:
    line = Line("m", chip, TEACHER, 100, fault or Fault("ok"))
    connections: set[Connection] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(line.handle, connections), "127.0.0.1")
    try:
        yield Client(line, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for connection in tuple(connections):
            connection.fin()


def with_line(test: Callable[[Client], Awaitable[None]], **more: Any) -> None:
    async def main() -> None:
        async with running(**more) as client:
            await test(client)

    asyncio.run(main())


def test_a_stream_has_the_shape_of_the_protocol() -> None:
    async def test(client: Client) -> None:
        got = await client.stream(12)
        assert got.status == 200 and got.headers["x-twinline-simulated"] == "1"
        *chunks, usage, done = got.events
        assert done == b"[DONE]" and got.tokens == expected(12)
        first, *_, last = [json.loads(chunk) for chunk in chunks]
        assert first["choices"][0]["prompt_token_ids"] == PROMPT
        assert "prompt_token_ids" not in last["choices"][0]
        assert (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"]) == ("length", None)
        assert (first["object"], first["model"], first["id"]) == ("text_completion", "m", last["id"])
        counted = json.loads(usage)
        assert counted["choices"] == [] and counted["usage"] == {
            "prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 0},
        }  # fmt: skip

    with_line(test)


def test_a_continuation_counts_what_it_was_given() -> None:
    async def test(client: Client) -> None:
        whole = expected(30)
        got = await client.stream(30, output_prefix_ids=whole[:11])
        assert whole[:11] + got.tokens == whole
        assert json.loads(got.events[-2])["usage"]["completion_tokens"] == 30

    with_line(test)


def test_it_stops_at_its_end_token_and_answers_whole_too() -> None:
    async def test(client: Client) -> None:
        got = await client.stream(500, ignore_eos=False)
        last = json.loads(got.events[-3])["choices"][0]
        assert got.tokens[-1] == 1 and (last["finish_reason"], last["stop_reason"]) == ("stop", 1)
        later = await client.stream(len(got.tokens) + 20, ignore_eos=False, min_tokens=len(got.tokens) + 5)
        assert later.tokens[: len(got.tokens) - 1] == got.tokens[:-1] and len(later.tokens) > len(got.tokens) + 4
        whole = (await client.stream(500, ignore_eos=False, stream=False)).json()
        assert whole["choices"][0]["token_ids"] == got.tokens
        assert whole["usage"]["completion_tokens"] == len(got.tokens)

    with_line(test)


def test_it_refuses_as_the_native_line_does() -> None:
    async def test(client: Client) -> None:
        for more, status, param in (
            ({"model": "other"}, 404, "model"),
            ({"prompt": []}, 400, "prompt"),
            ({"prompt": [100]}, 400, "prompt"),
            ({"prompt": [1] * 600}, 400, "prompt"),
            ({"temperature": -1}, 400, "temperature"),
            ({"n": 2}, 400, "n"),
            ({"logprobs": 1}, 400, "logprobs"),
            ({"prompt_logprobs": 0}, 400, "prompt_logprobs"),
            ({"logit_bias": {"3": 1}}, 400, "logit_bias"),
        ):
            got = await client.stream(5, **more)
            assert (got.status, got.json()["error"]["param"]) == (status, param), got.body
        assert (await client.ask("GET", "/v1/nothing")).status == 404
        assert (await client.ask("GET", "/v1/completions")).status == 405
        assert (await client.ask("POST", "/simulate", {"mode": "explode"})).status == 400

    with_line(test)


def test_a_full_queue_is_429_and_a_name_in_use_409() -> None:
    async def test(client: Client) -> None:
        scheduler, busy = client.line.engine.scheduler, []
        for index in range(6):
            busy.append(asyncio.create_task(client.stream(400, request_id=f"r{index}")))
            await until(
                lambda: scheduler.running == min(len(busy), 2) and scheduler.running + scheduler.waiting == len(busy)
            )
        assert (await client.stream(4, request_id="r0")).status == 409
        got = await client.stream(4)
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        assert got.json()["error"]["code"] == "queue_full"
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await until(lambda: not scheduler.has_work)

    with_line(test, chip=Chip(decode_tokens_per_second=50, slots=2, max_waiting=4, max_model_len=512))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_it_tells_of_itself_and_is_marked() -> None:
    async def test(client: Client) -> None:
        await client.stream(7)
        card = (await client.ask("GET", "/v1/models")).json()["data"][0]
        assert (card["owned_by"], card["label"]) == ("twinline-simulated", "simulated test")
        assert (card["max_model_len"], card["vocab_size"]) == (512, 100)
        health = (await client.ask("GET", "/health")).json()
        assert (health["status"], health["steps"], health["tokens_generated"], health["running"]) == ("ok", 7, 7, 0)
        metrics = (await client.ask("GET", "/metrics")).body.decode()
        assert 'vllm:generation_tokens_total{model_name="m"} 7' in metrics
        assert 'vllm:request_success_total{model_name="m",finished_reason="length"} 1' in metrics

    with_line(test)


@pytest.mark.parametrize(
    ("mode", "ended"), [("reset", "reset"), ("fin", "fin"), ("in_band", "whole"), ("stall", "silent")]
)
def test_a_stream_that_breaks_off(mode: str, ended: str) -> None:
    async def test(client: Client) -> None:
        await client.simulate(mode, after_tokens=5, streams="next")
        got = await client.stream(silence=1.0 if ended == "silent" else 20.0)
        assert got.ended == ended and b"[DONE]" not in got.body
        assert expected(5)[: len(got.tokens)] == got.tokens and (mode == "reset" or len(got.tokens) == 5)
        if mode == "in_band":
            assert json.loads(got.events[-1])["error"]["code"] == "line_failed"
        again = await client.stream()
        assert again.ended == "whole" and again.tokens == expected(20)
        await until(lambda: not client.line.engine.scheduler.has_work)

    with_line(test)


def test_a_stream_that_goes_wrong_but_on() -> None:
    async def test(client: Client) -> None:
        await client.simulate("broken_json", after_tokens=5, streams="next")
        got = await client.stream()
        broken = [event for event in got.events if not event.endswith((b"}", b"[DONE]"))]
        assert len(broken) == 1 and got.events[-1] == b"[DONE]" and got.tokens == expected(5) + expected(20)[6:]
        await client.simulate("wrong", after_tokens=5, streams="next")
        got = await client.stream()
        assert got.tokens[:5] == expected(5) and len(got.tokens) == 20 and got.tokens != expected(20)
        await client.simulate("late_wake", after_tokens=5, streams="next", seconds=0.3)
        got = await client.stream()
        assert got.ended == "whole" and got.tokens == expected(20)

    with_line(test)


def test_a_door_that_is_shut() -> None:
    async def test(client: Client) -> None:
        await client.simulate("500")
        assert (await client.stream()).status == 500
        await client.simulate("refuse")
        got = await client.stream()
        assert got.status == 429 and "retry-after" in got.headers
        await client.simulate("200_then_nothing")
        got = await client.stream(silence=1.0)
        assert (got.status, got.body, got.ended) == (200, b"", "silent")
        await client.simulate("ok")
        assert (await client.stream()).tokens == expected(20)

    with_line(test)


def test_a_line_that_hangs_answers_nothing_until_it_is_well() -> None:
    async def test(client: Client) -> None:
        await client.simulate("hang", after_tokens=5)
        stream = asyncio.create_task(client.stream(silence=10))
        await until(lambda: client.line.engine.counters.generated_tokens > 4)
        await asyncio.sleep(0.1)
        steps = client.line.engine.counters.steps
        assert (await client.ask("GET", "/health", silence=0.3)).ended == "silent"
        assert client.line.engine.counters.steps == steps and not stream.done()
        await client.simulate("ok")
        got = await stream
        assert got.ended == "whole" and got.tokens == expected(20)
        await client.simulate("hang", seconds=0.2)
        assert (await client.stream(silence=5)).tokens == expected(20)

    with_line(test)


def test_a_line_that_is_slow_makes_fewer_steps() -> None:
    async def test(client: Client) -> None:
        await client.simulate("slow", factor=1e6)
        stream = asyncio.create_task(client.stream(silence=20))
        await asyncio.sleep(0.2)
        assert client.line.engine.counters.steps <= 2 and not stream.done()
        stream.cancel()

    with_line(test)


def test_streams_under_way_are_struck_too() -> None:
    async def test(client: Client) -> None:
        streams = [asyncio.create_task(client.stream(400)) for _ in range(4)]
        await until(lambda: client.line.engine.counters.generated_tokens > 40)
        await client.simulate("fin")
        assert [got.ended for got in await asyncio.gather(*streams)] == ["fin"] * 4
        await client.simulate("ok")
        assert (await client.stream()).ended == "whole"

    with_line(test, chip=Chip(decode_tokens_per_second=200, slots=8))


def test_a_failure_from_the_start() -> None:
    async def test(client: Client) -> None:
        assert (await client.stream()).status == 500

    with_line(test, fault=Fault("500"))


def test_a_line_that_dies_takes_its_process_with_it() -> None:
    argv = [sys.executable, "-m", "twinline.lines.simulated", "--name", "m", "--decode-tokens-per-second", "500",
            "--fault", '{"mode":"die","after_tokens":5}']  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        client = Client(None, port)  # type: ignore[arg-type]
        got = asyncio.run(client.stream())
        assert got.ended in ("fin", "reset") and len(got.tokens) <= 5
        assert process.wait(10) == -signal.SIGKILL
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
