"""A client that sends bytes, and what comes back cut into answers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.gateway.harness import MODEL

BODY = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 2}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n"


def post(extra: bytes = b"", path: bytes = b"/v1/completions") -> bytes:
    """A head without its end, and without framing."""
    return b"POST " + path + b" HTTP/1.1\r\nhost: x\r\n" + extra


def framed(body: bytes = BODY, extra: bytes = b"", path: bytes = b"/v1/completions") -> bytes:
    return post(extra, path) + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes = BODY, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n0\r\n%s\r\n" % (len(body), extension, body, trailers)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """Checked to be in OpenAI's shape."""
        assert self.headers["content-type"] == "application/json"
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@contextmanager
def connected(address: tuple[str, int], receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(10)
        client.connect(address)
        yield client


def rest(client: socket.socket, quiet: float | None = None, expect: int | None = None) -> tuple[bytes, bool]:
    """What comes until the server closes, or until it is `quiet` for so long; whether it closed.

    After `expect` whole answers a shorter silence is enough: nothing more should come, unless the last of them says
    that the connection will be closed.
    """
    data = b""
    if quiet is not None:
        client.settimeout(quiet)
    try:
        while part := client.recv(1 << 16):
            data += part
            over = expect is not None and whole(data) >= expect
            if over and answers(data)[-1].headers.get("connection") != "close":
                client.settimeout(0.03)
    except TimeoutError:
        return data, False
    except (ConnectionResetError, BrokenPipeError):  # it closed with bytes of ours unread
        pass
    return data, True


def answers(data: bytes) -> list[Answer]:
    """All that came; a 100 is one of them. Raises if the bytes are not a row of whole answers."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end and head.startswith(b"HTTP/1.1 "), head[:200]
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(data.partition(b"\r\n")[0], 16):
                data = data.partition(b"\r\n")[2]
                body, data = body + data[:size], data[size + 2 :]
            data = data.partition(b"\r\n\r\n")[2]
        else:
            body = b""
        found.append(Answer(int(start.split()[1]), headers, body))
    return found


def whole(data: bytes) -> int:
    """How many answers have come whole."""
    try:
        return len(answers(data))
    except (AssertionError, ValueError):
        return 0


def said(address: tuple[str, int], *parts: bytes, quiet: float = 20.0, expect: int = 1) -> tuple[list[Answer], bool]:
    """What a server answers to bytes, sent in pieces; whether it closed."""
    with connected(address) as client:
        try:
            for number, part in enumerate(parts):
                if number:
                    time.sleep(0.05)
                client.sendall(part)
        except (ConnectionResetError, BrokenPipeError):
            pass
        data, closed = rest(client, quiet, expect)
    return answers(data), closed
