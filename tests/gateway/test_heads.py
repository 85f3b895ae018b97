"""Bytes that are no request: heads without end or haste, bodies that stall, and what is not HTTP."""

from __future__ import annotations

import json
import socket

import pytest
from tests.gateway.harness import Gateway

from twinline.gateway import heads

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def rest(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    try:
        while data := client.recv(1 << 16):
            parts.append(data)
    except ConnectionResetError:  # it closed with bytes of ours unread
        pass
    return b"".join(parts)


def refusal(data: bytes) -> tuple[int, str]:
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head and b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    return int(head.split()[1]), error["message"]


def test_an_endless_header_is_cut_off(door: Gateway) -> None:
    with door.connected() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nx: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(1000):
                client.sendall(b"a" * (1 << 16))
    with door.connected() as client:
        client.sendall(HEALTH[:-2].ljust(heads.MAX_HEAD_BYTES + 1, b"x"))
        assert refusal(rest(client))[0] == 431
    assert door.client.get("/health", headers={"x": "a" * 30_000}).status_code == 200


def test_a_head_that_drips_is_given_up(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_SECONDS", 1.0)
    with door.connected() as client:
        assert rest(client) == b""  # nothing was said, nothing is answered
    for before in (b"", HEALTH):  # the first request of a connection, and a later one
        with door.connected() as client:
            client.sendall(before)
            if before:
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            client.sendall(HEALTH[:20])
            status, message = refusal(rest(client))
            assert status == 408 and "longer than 1 s" in message
    with door.connected() as client:  # a connection that is kept is another thing
        for _ in range(2):
            client.settimeout(10)
            client.sendall(HEALTH)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            client.settimeout(1.2)
            with pytest.raises(TimeoutError):
                client.recv(1)


def test_a_body_that_stalls_is_given_up(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BODY_SILENCE_SECONDS", 0.1)
    with door.connected() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        status, message = refusal(rest(client))
        assert status == 408 and "0.1 s" in message


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_an_error_in_openais_shape(door: Gateway, data: bytes) -> None:
    with door.connected() as client:
        client.sendall(data)
        assert refusal(rest(client))[0] == 400
    assert door.client.get("/health").status_code == 200
