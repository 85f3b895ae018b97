"""Many clients, slow clients and large bodies: each takes a bounded share, and the others are answered meanwhile."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.gateway.harness import MAX_BODY, MODEL
from tests.gateway.hostile.conftest import Attacked
from tests.gateway.hostile.hostile_line import OK, endless, tokens
from tests.gateway.hostile.wire import BODY, HEALTH, answers, connected, framed, post, rest, said

from twinline.gateway import exchange, heads

STREAM = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 900_000, "stream": True}).encode()


def until(what: object, seconds: float = 60.0) -> None:
    assert callable(what)
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def few(attacked: Attacked) -> Iterator[int]:
    """The gateway may have so many connections."""
    crowd = attacked.crowd
    before, crowd.most = crowd.most, 8
    crowd.full_until = 0.0
    attacked.client.get("/health", headers={"connection": "close"})
    yield 8
    crowd.most, crowd.full_until = before, 0.0


def test_idle_connections_give_way(attacked: Attacked, few: int) -> None:
    attacked.good(True)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(attacked.address)) for _ in range(3 * few)]
        begun = idle[-1]
        begun.sendall(HEALTH)
        for _ in range(3):
            (answer,), _ = said(attacked.address, framed())
            assert answer.status == 200
        closed = 0
        for client in idle:
            client.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                try:
                    closed += client.recv(1) == b""
                except ConnectionResetError:
                    closed += 1
        assert closed >= 2 * few


def test_where_all_are_busy_the_next_is_told_so(attacked: Attacked, few: int) -> None:
    attacked.hostile.answer = endless(OK, tokens(20), 0.02)
    with ExitStack() as stack:
        for _ in range(few):
            client = stack.enter_context(connected(attacked.address))
            client.sendall(framed(STREAM))
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        with connected(attacked.address) as late:
            data, closed = rest(late)
        (answer,) = answers(data)
        assert closed and answer.status == 503
        assert answer.error["code"] == "too_many_connections" and answer.headers["retry-after"] == "1"

    def answered() -> bool:
        return [answer.status for answer in said(attacked.address, HEALTH + b"\r\n")[0]] == [200]

    until(answered)


def test_pipelining_is_bounded(attacked: Attacked) -> None:
    attacked.good(True)
    got, closed = said(attacked.address, (HEALTH + b"\r\n") * 20, expect=20)
    assert len(got) == 20 and not closed
    got, closed = said(attacked.address, (HEALTH + b"\r\n") * 3000, expect=3000)
    assert closed and len(got) <= heads.MOST_AHEAD + 1


def test_a_second_request_does_not_break_into_the_answer_to_the_first(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "BODY_SILENCE_SECONDS", 0.1)
    attacked.hostile.answer = endless(OK, tokens(20), 0.02)
    asked = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 30, "stream": True}).encode()
    got, closed = said(attacked.address, framed(asked) + post(b"content-length: 100\r\n\r\n") + b"{", expect=2)
    assert closed
    assert [answer.status for answer in got] == [200, 408]  # the first is whole, or `answers` would have raised
    assert got[0].body.endswith(b"data: [DONE]\n\n")


def test_a_body_that_drips_is_given_up(attacked: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BODY_SILENCE_SECONDS", 0.2)
    with connected(attacked.address) as client:
        client.sendall(post(b"content-length: 10000\r\n\r\n"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                client.sendall(b"a")
                time.sleep(0.02)
        data, closed = rest(client)
    assert closed
    (answer,) = answers(data)
    assert answer.status == 408 and answer.error["code"] == "slow_body"


def test_an_answer_before_the_end_of_a_body_ends_the_reading_some_time(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MOST_UNREAD_BYTES", 1 << 20)
    with connected(attacked.address) as client:
        client.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                client.sendall(b"a" * (1 << 16))


def test_a_client_that_does_not_read_holds_its_line_and_is_given_up(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "WRITE_SECONDS", 1.0)
    attacked.hostile.answer = endless(OK, tokens(*[20] * 100))
    with connected(attacked.address, receive_buffer=4096) as client:
        client.sendall(framed(STREAM))
        until(lambda: attacked.hostile.sent)
        sent = -1
        while attacked.hostile.sent != sent:  # until nothing moves any more
            sent = attacked.hostile.sent
            time.sleep(0.2)
        assert sent < 64 << 20
        until(lambda: not attacked.lines["hostile"].calls)
    assert attacked.supply.circuits["hostile"].closed  # it was the client who was silent
    assert [answer.status for answer in said(attacked.address, HEALTH + b"\r\n")[0]] == [200]


def test_a_client_that_does_not_read_is_no_fault_of_its_line(attacked: Attacked) -> None:
    """While others of the line are read, and another line could take the stream."""
    attacked.good(True)
    flood, drip = endless(OK, tokens(*[20] * 100)), endless(OK, tokens(20), 0.02)
    attacked.hostile.answer = lambda request: flood(request) if request["max_tokens"] == 900_000 else drip(request)
    with ExitStack() as stack:
        slow = stack.enter_context(connected(attacked.address, receive_buffer=4096))
        slow.sendall(framed(STREAM))
        quick = stack.enter_context(connected(attacked.address))
        quick.sendall(framed(STREAM.replace(b"900000", b"500")))
        until(lambda: len(attacked.lines["hostile"].calls) == 2)
        until(lambda: any(choice.paused for choice in attacked.lines["hostile"].calls.values()))
        (stopped,) = [call for call, choice in attacked.lines["hostile"].calls.items() if choice.paused]
        came = stopped.tokens
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert quick.recv(1 << 16)
        assert len(attacked.lines["hostile"].calls) == 2 and stopped.tokens == came  # neither was moved
        assert attacked.supply.circuits["hostile"].closed
        while stopped.tokens == came:  # it goes on where it stood
            assert slow.recv(1 << 16)


def test_a_closed_connection_whose_client_does_not_read_is_let_go(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was written would be waited for, and hold a file, for ever."""
    monkeypatch.setattr(heads, "WRITE_SECONDS", 0.3)
    before = len(attacked.connections)
    with connected(attacked.address, receive_buffer=4096) as client:
        client.setblocking(False)
        ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 8
        end = time.monotonic() + 30
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    client.send(ask)
                time.sleep(0.01)
                if len(attacked.connections) <= before:
                    break
        until(lambda: len(attacked.connections) <= before)


def test_bodies_together_are_bounded(attacked: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked.good(True)
    held = attacked.door.held
    monkeypatch.setattr(held, "limit", 2 * MAX_BODY)
    size = MAX_BODY - 1000
    body = BODY[:-1] + b', "junk": "' + b"a" * (size - len(BODY) - 12) + b'"}'
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(attacked.address)) for _ in range(4)]
        for client in clients:
            client.sendall(post(b"content-length: %d\r\n\r\n" % len(body)) + body[:-10])
        until(lambda: held.bytes > MAX_BODY)
        time.sleep(0.2)
        assert held.bytes <= held.limit
        (small,), _ = said(attacked.address, framed())
        assert small.status == 200  # it is not refused for the sake of the others
        for client in clients:
            client.sendall(body[-10:])
        statuses = [answers(rest(client, 20.0, 1)[0])[0].status for client in clients]
    assert sorted(set(statuses)) == [200, 503] and statuses.count(200) >= 2
    until(lambda: held.bytes == 0)


def test_what_is_held_is_given_back_however_it_ends(attacked: Attacked) -> None:
    held = attacked.door.held
    with connected(attacked.address) as client:
        client.sendall(post(b"content-length: 900000\r\n\r\n") + b"a" * 500_000)
        until(lambda: held.bytes >= 500_000)
    until(lambda: held.bytes == 0)
    got, _ = said(
        attacked.address, post(b"content-length: %d\r\n\r\n" % (2 * MAX_BODY)), b"a" * (2 * MAX_BODY), quiet=20
    )
    assert got[0].status == 413 and held.bytes == 0


@pytest.mark.parametrize("chunks", [False, True])
def test_a_body_of_100_megabytes_is_refused(attacked: Attacked, chunks: bool) -> None:
    megabyte = b"a" * (1 << 20)
    head = b"transfer-encoding: chunked\r\n\r\n" if chunks else b"content-length: 104857600\r\n\r\n"
    part = b"100000\r\n" + megabyte + b"\r\n" if chunks else megabyte
    got: list[bytes] = []

    with connected(attacked.address) as client:
        reader = threading.Thread(target=lambda: got.append(rest(client)[0]))
        reader.start()
        client.sendall(post(head))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                client.sendall(part)
                assert attacked.door.held.bytes <= MAX_BODY
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        reader.join(10)
    (answer,) = answers(got[0])
    assert answer.status == 413 and answer.error["code"] == "body_too_large"


@pytest.mark.parametrize("value", [b"[],", b"{},", b'"",', b"1,", b"[[[]]],"])
def test_a_body_of_many_small_values_is_refused_before_it_is_decoded(
    attacked: Attacked, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_VALUES", 10_000)
    for field in (b"tools", b"zzz", b"stop", b"prompt"):
        body = b'{"model":"tiny-r1","prompt":"Hi","%s":[%s1]}' % (field, value * 10_000)
        (answer,), _ = said(attacked.address, framed(body))
        assert answer.status == 413 and "values" in answer.error["message"]
