"""The control socket, and the control side as a process: locked, asked over HTTP, ended by signals.

Owns the HTTP surface on RUN_DIR/control.sock (mode 0600) and the process's life. Must not know how anything is done.

    GET  /state?after=SEQ          the fleet, and its events after SEQ
    POST /apply  {"fleet": PATH}   {"operation": N, "changes": [...]}, or 422 with `mistakes`
    POST /drain  {"line": NAME}    {"operation": N}
    POST /resume {"line": NAME}    {"operation": N}
    POST /faults {"line": REPLICA, "reason": TEXT}   from gateways
    POST /down   {"leave_running": false}
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from twinline.lines.fleet import home
from twinline.lines.fleet.controller import Controller
from twinline.lines.fleet.events import Event
from twinline.lines.fleet.file import Fleet, load
from twinline.lines.fleet.kinds import NOT_SET
from twinline.lines.fleet.marked import FileFaults
from twinline.lines.fleet.pace import Pace


class Operation(msgspec.Struct):
    """Something that takes its time. `state` is running, done or failed."""

    id: int
    what: str
    state: str = "running"
    failures: list[str] = []


class Control:
    """The control side of one fleet while it runs."""

    def __init__(self, controller: Controller, path: Path) -> None:
        self.controller = controller
        self.path = path
        self.since = time.time()
        self.operations: list[Operation] = []
        self.leave_running = False
        self.over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def operate(self, what: str, work: Coroutine[Any, Any, list[str] | None]) -> Operation:
        """Begins something; its end is to be read from `operations`."""
        operation = Operation(len(self.operations) + 1, what)
        self.operations.append(operation)

        async def run() -> None:
            try:
                operation.failures = await work or []
            except asyncio.CancelledError:
                operation.failures = ["the control side ends"]
                raise
            except Exception as error:
                operation.failures = [f"{type(error).__name__}: {error}"]
                raise
            finally:
                operation.state = "failed" if operation.failures else "done"

        task = asyncio.create_task(run(), name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return operation

    async def stop_operations(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def app(self) -> Starlette:
        routes = [Route("/state", self._state)]
        for name, handler in {
            "apply": self._apply,
            "drain": self._drain,
            "resume": self._resume,
            "faults": self._faults,
            "down": self._down,
        }.items():
            routes.append(Route(f"/{name}", handler, methods=["POST"]))
        return Starlette(routes=routes)

    async def _state(self, request: Request) -> Response:
        after = request.query_params.get("after") or "0"
        return _json(self.state(int(after) if after.isdecimal() else 0))

    def state(self, after: int = 0) -> dict[str, Any]:
        """Everything, as JSON says it; `events` are those after the one numbered `after`."""
        controller = self.controller
        fleet = controller.fleet
        return {
            "fleet": controller.directory.name,
            "file": str(self.path),
            "pid": os.getpid(),
            "since": self.since,
            "generation": controller.generation,
            "gateway": None if fleet is None else fleet.gateway,
            "models": () if fleet is None else fleet.models,
            "gateways": [
                {
                    "name": gateway.name,
                    "index": gateway.index,
                    "state": gateway.state,
                    "reason": gateway.reason,
                    "since": gateway.since,
                    "pid": None if gateway.engine is None else gateway.engine.pid,
                    "restarts": gateway.restarts,
                }
                for gateway in controller.gateways.values()
            ],
            "lines": [
                {
                    "entry": keeper.entry,
                    "pid": None if keeper.engine is None else keeper.engine.pid,
                    "restarts": keeper.restarts,
                }
                for keeper in controller.keepers.values()
            ],
            "left_out": {} if fleet is None else dict(fleet.notes),
            "operations": self.operations[-16:],
            "events": controller.events.after(after),
        }

    async def _apply(self, request: Request) -> Response:
        path = Path((await _body(request, "fleet"))["fleet"])
        try:
            if not path.is_file():  # a pipe or a device may keep us waiting for ever
                return _json({"error": f"{path} is no file"}, 422)
            fleet = load(path, os.environ)
        except FileFaults as error:
            whose = f" for the control side (process {os.getpid()}): it has what `twinline up` was started with"
            mistakes = [line + whose * line.endswith(NOT_SET) for line in error.lines()]
            return _json({"error": f"{path} has mistakes", "mistakes": mistakes}, 422)
        except (OSError, ValueError) as error:  # the latter of a path that none can be
            return _json({"error": str(error)}, 422)
        if fleet.name != self.controller.directory.name:
            running = self.controller.directory.name
            return _json({"error": f"{path} is fleet {fleet.name!r}, and {running!r} runs here"}, 409)
        changes = [change.plain() for change in self.controller.plan(fleet)]
        self.path = path
        operation = self.operate("apply", self.controller.apply(fleet))
        return _json({"operation": operation.id, "changes": changes})

    async def _drain(self, request: Request) -> Response:
        line = (await _body(request, "line"))["line"]
        if not self._known(line):
            return _unknown(line, self.controller)

        async def drained() -> list[str]:
            try:
                await self.controller.drain(line)
            except KeyError:
                return [f"{line} is not there any more"]
            return []

        return _json({"operation": self.operate("drain", drained()).id})

    async def _resume(self, request: Request) -> Response:
        line = (await _body(request, "line"))["line"]
        if not self._known(line):
            return _unknown(line, self.controller)

        async def resumed() -> list[str]:
            self.controller.resume(line)
            kept = [k for k in self.controller.keepers.values() if line in (k.name, k.spec.name)]
            return [f"{keeper.name}: {why}" for keeper in kept if (why := await keeper.verdict()) is not None]

        return _json({"operation": self.operate("resume", resumed()).id})

    async def _faults(self, request: Request) -> Response:
        said = await _body(request, "line", "reason")
        try:
            self.controller.fault(said["line"], said["reason"])
        except KeyError:
            return _unknown(said["line"], self.controller)
        return _json({})

    async def _down(self, request: Request) -> Response:
        said = await _body(request)
        self.leave_running = bool(said.get("leave_running"))
        self.over.set()
        return _json({})

    def _known(self, line: str) -> bool:
        return any(line in (keeper.name, keeper.spec.name) for keeper in self.controller.keepers.values())


async def run(
    path: Path,
    fleet: Fleet,
    gateway_argv: Sequence[str],
    *,
    leave_running: bool,
    told: Callable[[Event], None],
    begun: Callable[[list[str], Fleet], None],
    pace: Pace | None = None,
) -> None:
    """Runs the control side until SIGINT, SIGTERM or `down`; needs the main thread, for its signals.

    `told` hears every change of state; `begun` hears what failed once everything was tried, and
    what the fleet is then: a gateway that failed stays as it was.
    With `leave_running`, engines and gateways go on after a signal. Raises FleetIsUp, ValueError, OSError.
    """
    directory = home.run_directory(fleet.name)
    home.prepare(directory)
    with home.lock(directory), _listening(home.control_socket(directory)) as listener:
        control = Control(Controller(directory, gateway_argv, pace=pace, told=told), path.resolve())
        control.leave_running = leave_running
        server = _Server(uvicorn.Config(control.app(), lifespan="off", log_level="warning", access_log=False))
        answering = asyncio.create_task(server.serve(sockets=[listener]))
        control.operate("up", _begin(control, fleet, begun))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, control.over.set)
        try:
            await control.over.wait()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await control.stop_operations()
            await control.controller.end(leave_running=control.leave_running)
            server.should_exit = True
            await answering


async def _begin(control: Control, fleet: Fleet, begun: Callable[[list[str], Fleet], None]) -> list[str]:
    failures = await control.controller.begin(fleet)
    failures += await control.controller.doors()
    begun(failures, control.controller.fleet or fleet)
    return failures


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)  # the lock is held: nobody listens there
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(128)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _body(request: Request, *needed: str) -> dict[str, Any]:
    """The body's JSON object. Raises HTTPException when it is none, or lacks a text that is needed."""
    try:
        said = msgspec.json.decode(await request.body() or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise HTTPException(400, str(error)) from None
    for name in needed:
        if not isinstance(said.get(name), str):
            raise HTTPException(400, f"needs {name}, a text")
    return said


def _unknown(line: str, controller: Controller) -> Response:
    there = ", ".join(
        sorted({name for keeper in controller.keepers.values() for name in (keeper.spec.name, keeper.name)})
    )
    return _json({"error": f"there is no line {line!r}; there are {there or 'none'}"}, 404)
