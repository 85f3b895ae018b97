"""A gateway process of a fleet: serves what the roster in its run directory says, until it is told to end.

    python -m twinline.gateway.process --run DIR --index 0

Owns the order in which it comes up and goes down. Must not know how the roster is made. It listens on the fleet's
address, which it shares with its siblings, and on a Unix socket of its own for those who manage it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import uvloop
from prometheus_client import ProcessCollector

from twinline.gateway import tracing
from twinline.gateway.access import Access
from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.gateway.following import Following
from twinline.gateway.gauges import Unrecorded
from twinline.gateway.listening import Server, Stopping, Tls, bound, loopback, url_of
from twinline.gateway.logs import AccessLog, set_up_logs
from twinline.gateway.opened import opened
from twinline.gateway.renewing import renewing
from twinline.gateway.supply import Bounds
from twinline.lines import roster
from twinline.lines.client import LineClient
from twinline.lines.line import Line
from twinline.lines.protocol import LineError
from twinline.lines.roster import GatewaySpec

log = logging.getLogger(__name__)

CONTROL = "control.sock"
FAULT_SECONDS = 2.0


async def serve(directory: Path, index: int) -> None:
    """Serves until SIGINT or SIGTERM; needs the main thread, for its signals.

    Raises ValueError for settings that cannot be obeyed, OSError for an address that cannot be bound, StoreError for a
    store that cannot be opened.
    """
    settings = roster.read(directory).door(index)
    check(settings)
    stopping = Stopping()
    control = f"unix://{directory / CONTROL}"
    teller = _Teller(control)
    with contextlib.closing(bound(settings.host, settings.port, shared=True)) as listener, stopping.on_signals():
        async with _access(settings, index) as access, _traced(access, index):
            if settings.access_log:
                access.observers.append(AccessLog(settings.log_prompts))
            door = Door(access=access, max_body_bytes=settings.max_body_bytes)
            door.meters.currency = settings.currency
            access.on_refusal = door.meters.key_refused
            ProcessCollector("twinline_gateway", registry=door.meters.registry)
            door.meters.registry.register(Unrecorded(access))
            bounds = Bounds(queue_requests=settings.queue_requests, queue_seconds=settings.queue_seconds)
            following = Following(directory, door, bounds, teller.tell)
            await following.look()
            siblings = [
                f"unix://{directory / f'gateway-{other}.sock'}" for other in range(settings.workers) if other != index
            ]
            make = partial(
                App, door, index=index, siblings=siblings, control=control, generation=lambda: following.generation
            )
            outside, inside = make(), make(trusted=True, leave=stopping.leave)
            tls = Tls(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
            server = Server(outside, lambda: _ready(listener, tls), tls=tls)
            manager = Server(inside, lambda: None, unix=directory / f"gateway-{index}.sock")
            managing = asyncio.create_task(manager.serve())
            tasks = [asyncio.create_task(following.run())]
            if tls is not None:
                tasks.append(asyncio.create_task(renewing(tls, lambda: server.config.ssl)))
            settle_garbage()
            try:
                await stopping.serve(server, listener)
            finally:
                manager.should_exit = True
                for task in tasks:
                    task.cancel()
                await asyncio.gather(managing, *tasks, return_exceptions=True)


def check(settings: GatewaySpec) -> None:
    """Refuses a door that would be open by mistake, whatever has read the fleet file. Raises ValueError."""
    if settings.keys not in ("required", "off"):
        raise ValueError(f"keys must be required or off, not {settings.keys!r}")
    if settings.keys == "off" and not loopback(settings.host):
        raise ValueError(f"keys cannot be off at {settings.host}: anybody could use it; write keys: required")
    if settings.admin_key_env and not os.environ.get(settings.admin_key_env):
        raise ValueError(f"admin_key_env: the environment variable {settings.admin_key_env} is not set or empty")
    if settings.tls_key and not settings.tls_certificate:
        raise ValueError("tls_key is set without tls_certificate: the gateway would speak plain HTTP")
    if settings.tls_certificate:
        Tls(settings.tls_certificate, settings.tls_key).check()


def _access(settings: GatewaySpec, index: int) -> contextlib.AbstractAsyncContextManager[Access]:
    admin = os.environ.get(settings.admin_key_env) if settings.admin_key_env else None
    return opened(keys=settings.keys == "required", fold=index == 0, admin=admin, currency=settings.currency)


@contextlib.asynccontextmanager
async def _traced(access: Access, index: int) -> AsyncIterator[None]:
    """Traces, where they are asked for; what is left of them is sent at the end."""
    traces = tracing.set_up(index)
    if traces is None:
        yield
        return
    access.observers.append(traces.observer)
    try:
        yield
    finally:
        await asyncio.to_thread(traces.close)


def settle_garbage() -> None:
    """What is loaded now stays: the collector need not walk it again, nor look for cycles as often as by default. A
    full walk takes long enough to be seen in every stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class _Teller:
    """Tells the control side of lines that failed: it counts them over all gateways, and knows their processes."""

    def __init__(self, control: str) -> None:
        self._client = LineClient(control)
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, line: Line, reason: str) -> None:
        task = asyncio.create_task(self._send(line.name, reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, line: str, reason: str) -> None:
        body = msgspec.json.encode({"line": line, "reason": reason})
        try:
            await self._client.ask("POST", "/faults", body, FAULT_SECONDS)
        except LineError as error:
            log.info("the control side does not hear of line %s: %s", line, error)


def _ready(listener: socket.socket, tls: Tls | None) -> None:
    url = url_of(listener)
    url = url.replace("http://", "https://", 1) if tls else url
    print(msgspec.json.encode({"ready": True, "url": url, "pid": os.getpid(), "at": time.time()}).decode(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="twinline-gateway", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="where the roster lies")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="which of the fleet's gateways this is")
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    try:
        settings = roster.read(arguments.run).door(arguments.index)
    except (OSError, msgspec.DecodeError) as error:
        print(f"twinline-gateway: the roster in {arguments.run} cannot be read: {error}", file=sys.stderr)
        return 1
    set_up_logs(settings.log_format, arguments.log_level)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what rotates logs may send it, and nobody's terminal is this
    try:
        uvloop.run(serve(arguments.run, arguments.index))
    except Exception as error:
        log.critical("the gateway ends: %s", error, exc_info=not isinstance(error, OSError | ValueError))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
