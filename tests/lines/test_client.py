"""Connections to a line: kept and used again, asked once more where an idle one had been closed, held while paused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
import uvloop

from twinline.gateway.faults import is_fault
from twinline.lines import http
from twinline.lines.client import LineClient
from twinline.lines.protocol import LineBroken, LineError, LineRefused, TokenRequest
from twinline.lines.wire import Delta

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(tokens: list[int], finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": "", "token_ids": tokens, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
WHOLE = chunk(event([1])) + chunk(event([2], "length")) + chunk(USAGE) + chunk(b"data: [DONE]\n\n")
END = b"0\r\n\r\n"
Serve = Callable[[asyncio.StreamWriter, int, int], Awaitable[bool]]


class Peer:
    """A server that keeps connections. `serve` answers request `n` of connection `c`; False closes it."""

    def __init__(self, serve: Serve) -> None:
        self.connections = 0
        self.requests: list[tuple[int, str]] = []
        self.closed = asyncio.Event()
        self._serve_one = serve
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        number = 0
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if "content-length" in line]
                body = json.loads(await reader.readexactly(int(lengths[0]))) if lengths else {}
                self.requests.append((connection, body.get("request_id", head.split(" ")[1])))
                number += 1
                if not await self._serve_one(writer, connection, number):
                    break
                await writer.drain()
        self.closed.set()
        writer.close()


def run(serve: Serve, test: Callable[[Peer, LineClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        peer = Peer(serve)
        client = LineClient(await peer.start())
        try:
            async with asyncio.timeout(10):
                await test(peer, client)
        finally:
            client.close()
            peer.stop()

    for runner in (asyncio.run, uvloop.run):
        runner(whole())


async def tokens(client: LineClient, name: str = "r") -> list[int]:
    request = TokenRequest(model="m", prompt=[1, 2, 3], request_id=name)
    async with aclosing(client.stream(request)) as deltas:
        return [token async for delta in deltas for token in delta.tokens]


async def well(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
    writer.write(HEAD + WHOLE + END)
    return True


def test_one_connection_serves_one_request_after_the_other() -> None:
    async def test(peer: Peer, client: LineClient) -> None:
        for number in range(5):
            assert await tokens(client, f"r{number}") == [1, 2]
        assert peer.connections == 1 and [name for _, name in peer.requests] == [f"r{number}" for number in range(5)]

    run(well, test)


def test_as_many_connections_as_there_are_requests_at_once_and_all_are_kept() -> None:
    async def slowly(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(HEAD)
        await asyncio.sleep(0.05)
        writer.write(WHOLE + END)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        for _ in range(3):
            assert await asyncio.gather(*(tokens(client, f"r{number}") for number in range(6))) == [[1, 2]] * 6
        assert peer.connections == 6

    run(slowly, test)


@pytest.mark.parametrize("when", ["after the answer", "when the next request comes"])
def test_an_idle_connection_that_the_peer_closed_is_no_fault(when: str) -> None:
    async def once(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        if number > 1:
            return False  # it had given the connection up already; the request was not read
        writer.write(HEAD + WHOLE + END)
        return when != "after the answer"

    async def test(peer: Peer, client: LineClient) -> None:
        for number in range(4):
            assert await tokens(client, f"r{number}") == [1, 2]
            if when == "after the answer":
                await asyncio.sleep(0.02)
        assert peer.connections == 4
        status, _ = await client.ask("GET", "/health")
        assert status == 200

    run(once, test)


def test_a_fresh_connection_that_closes_without_a_word_is_a_fault_and_not_asked_again() -> None:
    async def never(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        return False

    async def test(peer: Peer, client: LineClient) -> None:
        with pytest.raises(LineBroken):
            await tokens(client)
        assert len(peer.requests) == 1

    run(never, test)


def test_a_kept_connection_that_breaks_inside_an_answer_is_not_asked_again() -> None:
    async def breaks(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        if number == 1:
            writer.write(HEAD + WHOLE + END)
            return True
        writer.write(HEAD + chunk(event([1])))
        return False

    async def test(peer: Peer, client: LineClient) -> None:
        assert await tokens(client) == [1, 2]
        with pytest.raises(LineBroken):
            await tokens(client, "second")
        assert [name for _, name in peer.requests] == ["r", "second"], "a token had come: asking again would double it"

    run(breaks, test)


def test_done_ends_an_answer_whose_body_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LEFT_SECONDS", 0.1)

    async def no_end(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(HEAD + WHOLE)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        began = asyncio.get_running_loop().time()
        assert await tokens(client, "first") == [1, 2]
        assert asyncio.get_running_loop().time() - began < 8  # it would never end
        # That connection cannot be used: its body has no end. It is closed, and the next request gets another.
        assert await tokens(client, "second") == [1, 2]
        assert [connection for connection, _ in peer.requests] == [1, 2]
        await asyncio.wait_for(peer.closed.wait(), 8)

    run(no_end, test)


def test_the_end_of_a_body_that_comes_soon_after_done_keeps_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LEFT_SECONDS", 60.0)

    async def late_end(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(HEAD + WHOLE)
        await asyncio.sleep(0.02)
        writer.write(END)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        for number in range(3):
            assert await tokens(client, f"r{number}") == [1, 2]
            while (connection := client.pool.idle()) is None:
                await asyncio.sleep(0.005)
            client.pool.keep(connection)
        assert peer.connections == 1

    run(late_end, test)


def test_a_peer_that_says_close_is_not_asked_on_that_connection() -> None:
    async def closes(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + WHOLE + END)
        return True  # it does not close after all: we must

    async def test(peer: Peer, client: LineClient) -> None:
        assert await tokens(client) == [1, 2] and await tokens(client) == [1, 2]
        assert peer.connections == 2

    run(closes, test)


@pytest.mark.parametrize(
    "body", [b'{"data": ' + b"[" * 5000, b'{"data": "\xff"}', b"[1"], ids=["deep", "no text", "cut"]
)
def test_what_a_line_says_of_itself_may_be_anything(body: bytes) -> None:
    async def says(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        assert await client.health() == (True, {})
        with pytest.raises(LineBroken, match="is not OpenAI's list"):
            await client.models()

    run(says, test)


def test_a_refusal_leaves_the_connection_whole() -> None:
    async def refuses(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        if number % 2:
            body = b'{"error": {"message": "full", "code": "queue_full"}}'
            head = b"HTTP/1.1 429 X\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
        else:
            writer.write(HEAD + WHOLE + END)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        with pytest.raises(LineRefused) as refused:
            await tokens(client)
        assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "queue_full", "7")
        assert await tokens(client) == [1, 2]
        assert peer.connections == 1

    run(refuses, test)


class Sink:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.over: asyncio.Future[LineError | None] = asyncio.get_running_loop().create_future()

    def delta(self, delta: Delta) -> None:
        self.tokens += delta.tokens

    def finished(self) -> None:
        self.over.set_result(None)

    def failed(self, error: LineError) -> None:
        self.over.set_result(error)


def test_while_it_is_paused_nothing_is_read_and_the_peer_has_to_wait() -> None:
    sent = [0]
    many = [chunk(event([number % 1000] * 200)) for number in range(4000)]

    async def floods(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(HEAD)
        for count, each in enumerate(many, 1):
            writer.write(each)
            await writer.drain()
            sent[0] = count
        writer.write(chunk(event([7], "length")) + chunk(b"data: [DONE]\n\n") + END)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        sent[0] = 0
        sink = Sink()
        call = client.call(TokenRequest(model="m", prompt=[1], request_id="r", max_tokens=10**6), None, sink)
        while not sink.tokens:
            await asyncio.sleep(0.001)
        call.pause()
        await asyncio.sleep(0.1)
        came, was_sent = len(sink.tokens), sent[0]
        await asyncio.sleep(0.2)
        assert len(sink.tokens) == came and sent[0] <= was_sent + 200 and sent[0] < len(many)
        call.resume()
        assert await sink.over is None
        assert len(sink.tokens) == 200 * len(many) + 1
        assert await tokens(client, "next") != [] and peer.connections == 1, "the connection can be used again"

    run(floods, test)


def test_a_call_that_was_paused_before_its_connection_was_there_is_paused_all_the_same() -> None:
    async def test(peer: Peer, client: LineClient) -> None:
        sink = Sink()
        call = client.call(TokenRequest(model="m", prompt=[1], request_id="r"), None, sink)
        call.pause()
        await asyncio.sleep(0.1)
        assert not sink.tokens and not sink.over.done()
        call.resume()
        assert await sink.over is None and sink.tokens == [1, 2]
        call.pause()  # it is over: this must not hold the next one on the same connection
        assert await tokens(client, "next") == [1, 2]
        assert peer.connections == 1

    run(well, test)


def test_cancelling_closes_the_connection_and_only_that() -> None:
    async def hangs(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(HEAD + chunk(event([1])))
        if connection == 1:
            await asyncio.sleep(60)
        writer.write(chunk(event([2], "length")) + chunk(b"data: [DONE]\n\n") + END)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        sink = Sink()
        call = client.call(TokenRequest(model="m", prompt=[1], request_id="r"), None, sink)
        while not sink.tokens:
            await asyncio.sleep(0.001)
        other = asyncio.create_task(tokens(client, "other"))
        await asyncio.sleep(0.02)
        call.cancel()
        assert await other == [1, 2] and not sink.over.done()
        assert await tokens(client, "next") == [1, 2]
        assert peer.connections == 2

    run(hangs, test)


def test_a_connection_that_lay_idle_for_long_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands between may have forgotten it, and then nothing that is sent there comes back."""

    async def test(peer: Peer, client: LineClient) -> None:
        monkeypatch.setattr(http, "IDLE_SECONDS", 60.0)
        for _ in range(2):
            assert await tokens(client) == [1, 2]
        assert peer.connections == 1
        monkeypatch.setattr(http, "IDLE_SECONDS", 0.0)
        assert await tokens(client) == [1, 2]
        assert peer.connections == 2 and len(client.pool._idle) == 1

    run(well, test)


def test_what_comes_before_the_answer_is_passed_over() -> None:
    async def hinted(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(HEAD + WHOLE + END)
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        for _ in range(2):
            assert await tokens(client) == [1, 2]
        assert (await client.ask("GET", "/health"))[0] == 200
        assert peer.connections == 1

    run(hinted, test)


@pytest.mark.parametrize(
    ("head", "body", "status", "words", "code"),
    [
        (b"200 OK", b'{"error": {"message": "no credit", "code": 402}}', 402, "no credit", "402"),
        (b"200 OK", b' {"error": {"message": "busy", "code": "busy"}}', 502, "busy", "busy"),
        (b"200 OK", b'{"object": "chat.completion", "choices": []}', 502, "it answered with something", None),
        (b"404 X", b'{"error": "model not found, try pulling it"}', 404, "model not found, try pulling it", None),
        (b"400 X", b'{"object": "error", "message": "too long", "code": 400, "param": null}', 400, "too long", "400"),
        (b"403 X", b'{"detail": "Not authenticated"}', 403, "Not authenticated", None),
        (b"502 X", b"<html><head><title>502 Bad Gateway</title></head></html>", 502,
         "status 502, with a page: 502 Bad Gateway", None),
        (b"301 X", b"<!doctype html>moved", 301, "status 301, with a page", None),
        (b"500 X", b'{"error": {"message": 5, "code": [1]}, "detail": [2]}', 500, '{"error": {"message": 5', None),
    ],
)  # fmt: skip
def test_refusals_of_every_shape_are_read(head: bytes, body: bytes, status: int, words: str, code: str | None) -> None:
    async def refuses(writer: asyncio.StreamWriter, connection: int, number: int) -> bool:
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        return True

    async def test(peer: Peer, client: LineClient) -> None:
        with pytest.raises(LineRefused) as refused:
            await tokens(client)
        assert (refused.value.status, refused.value.code) == (status, code)
        assert refused.value.message.startswith(words) and is_fault(refused.value) is (status not in (400, 403))

    run(refuses, test)


@pytest.mark.parametrize(
    ("url", "named"),
    [("http://[::1]:8001", b"[::1]:8001"), ("https://host/v1", b"host"), ("http://host:443", b"host:443"),
     ("http://host", b"host")],
)  # fmt: skip
def test_a_request_names_its_host_as_http_wants_it_and_who_asks(url: str, named: bytes) -> None:
    head = LineClient(url).pool.request("GET", "/health")
    assert b"\r\nhost: %b\r\n" % named in head and b"\r\nuser-agent: twinline/" in head


def test_a_host_that_can_be_none_is_unreachable() -> None:
    async def asked() -> None:
        with pytest.raises(LineRefused) as refused:
            await tokens(LineClient("http://a..b:1"))
        assert refused.value.code == "line_unreachable"

    for runner in (asyncio.run, uvloop.run):
        runner(asyncio.wait_for(asked(), 5))
