"""The HTTP server under the gateway: its socket, its settings, and how signals end it.

Owns uvicorn. Must not know models or lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from twinline.gateway.crowd import MOST_CONNECTIONS, Crowd
from twinline.gateway.heads import Connection

DRAIN_SECONDS = 5  # how long open streams may go on after a signal
READ_SECONDS = 0.05  # for what clients have sent before that
LAST_WORDS_SECONDS = 1.0  # how long clients may take to read that the server ends


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form; the key may be in the certificate's."""

    certificate: str
    key: str | None = None

    def stamps(self) -> list[tuple[int, int] | None]:
        """Others when a file is another than it was."""
        found: list[tuple[int, int] | None] = []
        for file in filter(None, (self.certificate, self.key)):
            try:
                there = Path(file).stat()
            except OSError:
                found.append(None)
            else:
                found.append((there.st_mtime_ns, there.st_ino))
        return found

    def check(self) -> None:
        """Raises ValueError, in one line that names the file, for what no server could use."""
        for file in (self.certificate, self.key):
            try:
                if file is not None:
                    Path(file).read_bytes()
            except OSError as error:
                raise ValueError(f"TLS: {file} cannot be read: {error.strerror or error}") from None
        files = self.certificate if self.key is None else f"{self.certificate} and {self.key}"
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError as error:
            raise ValueError(f"TLS: {files} hold no certificate with its key: {error.reason or error}") from None
        except ValueError as error:
            raise ValueError(f"TLS: {files}: {error}") from None


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal, if there is one."""
    raise ValueError("the key is encrypted; the gateway needs one without a password")


class Server(uvicorn.Server):
    """Serves `app` on a socket that was bound before; calls `ready` once it answers. Signals are `Stopping`'s."""

    def __init__(
        self, app: ASGIApp, ready: Callable[[], None], *, tls: Tls | None = None, unix: Path | None = None
    ) -> None:
        """`unix`: a socket that it makes itself, for its owner alone, instead of one that is given."""
        connection = partial(Connection, crowd=Crowd(most_connections()))
        config = uvicorn.Config(
            app,
            uds=None if unix is None else str(unix),
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
            loop="none",
            http=connection,  # type: ignore[arg-type]  # only called
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
        self._connection = partial(connection, config=config, server_state=self.server_state, app_state={})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.config.uds:
            Path(self.config.uds).chmod(0o600)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Whoever has connected until now is answered: siblings that share the address keep it open, and no client of
        theirs should see that one of them ends."""
        await self._accept_all(sockets or ())
        await asyncio.sleep(READ_SECONDS)
        await super().shutdown(sockets)

    async def _accept_all(self, listeners: Iterable[socket.socket]) -> None:
        """The kernel resets what it holds for a listener that closes."""
        waiting = [client for listener in listeners for client in _waiting(listener)]
        for server in self.servers:
            server.close()
        accept = partial(
            asyncio.get_running_loop().connect_accepted_socket,
            self._connection,
            ssl=self.config.ssl,
            ssl_handshake_timeout=None if self.config.ssl is None else LAST_WORDS_SECONDS,
        )
        taken = [accept(client) for client in waiting]
        await asyncio.gather(*taken, return_exceptions=True)


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Clients that have connected and were not accepted yet."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            client.setblocking(False)
            yield client


def most_connections() -> int:
    """How many clients may be connected: three quarters of the files that the process may open, the rest is for lines.
    Takes the highest limit that the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 2 * MOST_CONNECTIONS)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return min(MOST_CONNECTIONS, soft * 3 // 4)


class Stopping:
    """SIGINT and SIGTERM end what is under way: the start of a line, or the server, which then finishes its streams.
    `leave` does so without a signal, and leaves streams all the time that they need."""

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

    def leave(self) -> None:
        if self._server is not None:
            self._server.config.timeout_graceful_shutdown = None
        self.ask()

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
        for connection in list(server.server_state.connections):
            if isinstance(connection, Connection):
                connection.cut_off()
        await asyncio.sleep(0)  # what they wrote goes out with the end of the turn
        if left := set(server.server_state.tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=LAST_WORDS_SECONDS)


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that has the address but refuses connections until it is served. Raises OSError if it is taken.

    `shared`: with other processes that ask for it so; the kernel spreads connections over them.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)  # named: asyncio sends at once on TCP that calls itself so
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    return listener


def loopback(host: str) -> bool:
    """Whether only this machine can reach a server there: every address that the name has is loopback's."""
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if address.version == 6 and not address.is_unspecified else f"http://{host}:{port}"
