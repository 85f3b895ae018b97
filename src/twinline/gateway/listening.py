"""The HTTP server under the gateway: its socket, its settings, and how signals end it.

Owns uvicorn. Must not know models or lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from twinline.gateway.heads import Connection

DRAIN_SECONDS = 5  # how long open streams may go on after a signal
LAST_WORDS_SECONDS = 1.0  # how long clients may take to read that the server ends


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form; the key may be in the certificate's."""

    certificate: str
    key: str | None = None


class Server(uvicorn.Server):
    """Serves `app` on a socket that was bound before; calls `ready` once it answers. Signals are `Stopping`'s."""

    def __init__(
        self, app: ASGIApp, ready: Callable[[], None], *, tls: Tls | None = None, unix: Path | None = None
    ) -> None:
        """`unix`: a socket that it makes itself, for its owner alone, instead of one that is given."""
        config = uvicorn.Config(
            app,
            uds=None if unix is None else str(unix),
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.config.uds:
            Path(self.config.uds).chmod(0o600)
        self._ready()


class Stopping:
    """SIGINT and SIGTERM end what is under way: the start of a line, or the server, which then finishes its streams."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._server: Server | None = None

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.ask)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def ask(self) -> None:
        """What a signal does; the second time means now."""
        if self._server is not None:
            self._server.force_exit = self._asked.is_set()
            self._server.should_exit = True
        self._asked.set()

    async def unless_asked(self, work: Coroutine[Any, Any, None]) -> bool:
        """Runs `work`, cancels it on a signal; whether it was done."""
        task = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return task.done()
        finally:
            task.cancel()
            asked.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)

    async def serve(self, server: Server, listener: socket.socket) -> None:
        """Until a signal came and the streams under way have ended or were told to."""
        self._server = server
        if not self._asked.is_set():
            await server.serve([listener])
        if left := set(server.server_state.tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=LAST_WORDS_SECONDS)


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that has the address but refuses connections until it is served. Raises OSError if it is taken.

    `shared`: with other processes that ask for it so; the kernel spreads connections over them.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if address.version == 6 and not address.is_unspecified else f"http://{host}:{port}"
