"""The end of a server: no client that has reached it by then is turned away."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import uvloop

from twinline.gateway import heads
from twinline.gateway.listening import Server, Stopping, bound

ASK = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def ended_with(*clients_of: str) -> dict[str, bytes]:
    """Ends a server; what clients got that reached it before, by what they had done by then and do meanwhile."""
    got: dict[str, bytes] = {}

    async def main() -> None:
        stopping = Stopping()
        with bound("127.0.0.1", 0) as listener:
            serving = asyncio.create_task(stopping.serve(Server(app, lambda: None), listener))
            await asyncio.sleep(0.1)
            loop, address = asyncio.get_running_loop(), listener.getsockname()
            made = {what: socket.create_connection(address, timeout=5) for what in clients_of if what != "queued"}
            if "begun" in made:
                made["begun"].sendall(ASK[:10])
            await asyncio.sleep(0.05)
            stopping.ask()
            if "queued" in clients_of:  # the server has no turn between this and its end
                made["queued"] = socket.create_connection(address, timeout=5)
                made["queued"].sendall(ASK)
            time.sleep(0.2)
            await asyncio.sleep(0.2)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=5)
            for what, rest in (("connected", ASK), ("begun", ASK[10:])):
                if what in made:
                    made[what].sendall(rest)
            for what, client in made.items():
                got[what] = await loop.run_in_executor(None, _rest, client)
                client.close()
            await asyncio.wait_for(serving, 4)

    uvloop.run(main())
    return got


def _rest(client: socket.socket) -> bytes:
    parts = []
    while data := client.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def test_whoever_has_connected_is_answered() -> None:
    for what, answer in ended_with("queued", "connected", "begun").items():
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok"), what
        assert what == "queued" or b"connection: close" in answer.lower(), what


def test_who_then_sends_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LAST_HEAD_SECONDS", 0.3)
    began = time.monotonic()
    assert ended_with("silent") == {"silent": b""}
    assert time.monotonic() - began < 3


def test_an_address_that_is_taken_is_named() -> None:
    with bound("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: Address already in use"):
            bound("127.0.0.1", port)
