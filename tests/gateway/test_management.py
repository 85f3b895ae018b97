"""`/api` of a real gateway: who may use it, what it tells of lines, and how it hands on to the control side."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import msgspec
import pytest
from tests.gateway.processes import MODEL, Doubles, Fleet, Gateway, entry, fleet, until
from tests.lines.line_double import Script

from twinline.cli.ps import text
from twinline.lines.fleet.status import status
from twinline.lines.state import LineState
from twinline.store.database import Database
from twinline.store.keys import Keys

ADMIN = "the-management-key-of-this-fleet"


@dataclass
class Control:
    """A double of the control side at its Unix socket."""

    path: Path
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    answer: tuple[int, bytes] = (200, b'{"done": true}')

    def __enter__(self) -> Control:
        control = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # no connection outlives it

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                control.asked.append((self.command, self.path, body))
                status, text = control.answer
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET

            def address_string(self) -> str:
                return "control"

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingMixIn, UnixStreamServer):
            daemon_threads = True

        self._server = Server(str(self.path), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink()


@dataclass
class Place:
    fleet: Fleet
    gateway: Gateway
    doubles: Doubles
    keys: dict[str, str]

    def get(self, path: str, key: str | None = None) -> Any:
        with self.fleet.client(key) as client:
            return client.get(path)


@pytest.fixture(scope="module")
def place(tiny_folder: Path) -> Iterator[Place]:
    env = {"TEST_ADMIN": ADMIN}
    with (
        Doubles(3) as doubles,
        fleet(tiny_folder, env, keys="required", admin_key_env="TEST_ADMIN", queue_seconds=15.0) as made,
    ):
        database = Database(f"sqlite:///{made.directory / 'twinline.db'}")
        store = Keys(database)
        keys = {"plain": store.create("plain")[1], "chief": store.create("chief", admin=True)[1]}
        database.close()
        made.entries = [entry("a", doubles.urls[0]), entry("b", doubles.urls[1])]
        made.write()
        yield Place(made, made.start(), doubles, keys)


@pytest.fixture(autouse=True)
def _plain(place: Place) -> None:
    for double in place.doubles.lines:
        double.script = lambda request: Script(list(range(10, 22)))


PATHS = ("/api/lines", "/api/metrics", "/api/state")


@pytest.mark.parametrize("path", PATHS)
def test_who_may_manage(place: Place, path: str) -> None:
    with Control(place.fleet.directory / "control.sock"):
        answers = {
            name: place.get(path, key).status_code
            for name, key in (("nobody", None), ("a guess", "x" * 32), ("a tenant", place.keys["plain"]),
                              ("admin", ADMIN), ("chief", place.keys["chief"]))
        }  # fmt: skip
        assert answers == {"nobody": 401, "a guess": 403, "a tenant": 403, "admin": 200, "chief": 200}
        assert place.gateway.ask(path).status_code == 200  # who reaches the socket owns the fleet
    mode = place.gateway.socket.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("path", ["/api/apply", "/api/drain", "/api/resume"])
def test_nobody_else_changes_a_fleet(place: Place, path: str) -> None:
    with Control(place.fleet.directory / "control.sock") as control, place.fleet.client(place.keys["plain"]) as client:
        assert client.post(path, json={}).status_code == 403
        assert client.get(path).status_code == 405
        assert control.asked == []


def test_what_changes_a_fleet_is_handed_on(place: Place) -> None:
    with Control(place.fleet.directory / "control.sock") as control, place.fleet.client(ADMIN) as client:
        answer = client.post("/api/drain?line=a", json={"line": "a"})
        assert (answer.status_code, answer.json()) == (200, {"done": True})
        method, path, body = control.asked[-1]
        assert (method, path, json.loads(body)) == ("POST", "/drain?line=a", {"line": "a"})
        control.answer = (409, b'{"error": {"message": "it is drained already"}}')
        answer = client.post("/api/drain", json={"line": "a"})
        assert answer.status_code == 409 and "drained already" in answer.text


def test_without_a_control_side_the_gateway_serves_and_says_so(place: Place) -> None:
    with place.fleet.client(ADMIN) as client:
        answer = client.post("/api/apply", json={})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_control"
    with place.fleet.client(place.keys["plain"]) as client:
        assert place.fleet.complete(client).status_code == 200


def test_what_is_told_of_lines(place: Place) -> None:
    with place.fleet.client(place.keys["plain"]) as client:
        assert {place.fleet.complete(client).status_code for _ in range(4)} == {200}
    told = place.gateway.ask("/api/lines").json()
    assert told["generation"] == place.fleet.generation
    lines = {line["name"]: line for line in told["lines"]}
    assert set(lines) == {"a", "b"}
    for line in lines.values():
        assert (line["model"], line["state"], line["ready"], line["circuit"]) == (MODEL, "serving", True, "closed")
        assert line["circuit_reason"] is None and line["in_flight"] == 0
        assert line["predicted_ttft_seconds"] > 0 and line["prefill_tokens_per_second"] > 0
    assert sum(line["requests"] for line in lines.values()) >= 4


def test_a_line_without_room_is_up(place: Place) -> None:
    entries = list(place.fleet.entries)
    place.fleet.entries = entries[:1]
    place.fleet.followed()
    place.doubles.lines[0].script = lambda request: Script(fault="refuse", headers={"retry-after": "5"})

    def full() -> dict[str, Any] | None:
        (line,) = place.gateway.ask("/api/lines").json()["lines"]
        return line if line["full"] else None

    def ask() -> None:
        with place.fleet.client(place.keys["plain"]) as client:
            place.fleet.complete(client)

    waiting = threading.Thread(target=ask)
    waiting.start()
    line = until(full)
    assert line["ready"] and line["circuit"] == "closed"
    assert place.gateway.ask("/health").json()["status"] == "ok"
    metrics = place.gateway.ask("/api/metrics").text
    assert f'twinline_gateway_line_up{{line="a",model="{MODEL}"}} 1.0' in metrics
    assert f'twinline_gateway_queued_requests{{model="{MODEL}"}} 1.0' in metrics
    place.doubles.lines[0].script = lambda request: Script(list(range(10, 22)))
    waiting.join(20)  # it is served when the line is asked again
    assert not waiting.is_alive()
    place.fleet.entries = entries
    place.fleet.followed()


def test_a_fault_is_told_here_and_to_the_control_side(place: Place) -> None:
    """What the gateway alone can see: the control side counts it over all gateways."""
    with Control(place.fleet.directory / "control.sock") as control, place.fleet.client(place.keys["plain"]) as client:
        place.doubles.lines[0].script = lambda request: Script(
            fault="refuse", status=500, error={"message": "a card fell off"}
        )

        def told() -> list[dict[str, Any]]:
            assert place.fleet.complete(client).status_code == 200  # the other line has it
            return [json.loads(body) for _, path, body in control.asked if path == "/faults"]

        assert until(told)[0] == {"line": "a", "reason": "a card fell off"}
        (line,) = [line for line in place.gateway.ask("/api/lines").json()["lines"] if line["name"] == "a"]
        assert (line["state"], line["ready"]) == ("serving", False) and line["circuit"] != "closed"
        assert "a card fell off" in line["circuit_reason"]
        place.doubles.lines[0].script = lambda request: Script(list(range(10, 22)))
        until(lambda: all(line["ready"] for line in place.gateway.ask("/api/lines").json()["lines"]))


# What everybody may know.


def health(place: Place) -> tuple[int, dict[str, Any]]:
    answer = place.get("/health")
    return answer.status_code, answer.json()


def test_health_tells_the_truth(place: Place) -> None:
    until(lambda: health(place)[0] == 200 and health(place)[1]["status"] == "ok")
    before = list(place.fleet.entries)
    place.fleet.entries = [
        entry("a", place.doubles.urls[0]),
        entry("b", place.doubles.urls[1], state=LineState.DRAINING, reason="it is drained by hand"),
        entry("c", None, state=LineState.QUARANTINED, reason="it failed 3 times in 10 minutes"),
        entry("d", None, state=LineState.STARTING, reason="it loads its weights"),
        entry("e", place.doubles.urls[2], state=LineState.DEGRADED, reason="2 health checks were unanswered"),
    ]
    place.fleet.followed()
    status, said = health(place)
    lines = said["models"][MODEL]["lines"]
    assert (status, said["status"], said["models"][MODEL]["status"]) == (200, "degraded", "ok")
    assert {name: line["state"] for name, line in lines.items()} == {
        "a": "serving", "b": "draining", "c": "quarantined", "d": "starting", "e": "degraded",
    }  # fmt: skip
    assert lines["c"]["reason"] == "it failed 3 times in 10 minutes"
    place.fleet.entries = place.fleet.entries[1:4]
    place.fleet.followed()
    status, said = health(place)
    assert (status, said["status"], said["models"][MODEL]["status"]) == (503, "unavailable", "unavailable")
    with place.fleet.client(place.keys["plain"]) as client:
        answer = place.fleet.complete(client)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_line"
    assert "quarantined: it failed 3 times in 10 minutes" in answer.json()["error"]["message"]
    place.fleet.entries = before
    place.fleet.followed()
    until(lambda: health(place)[1]["status"] == "ok")


def test_ps_tells_the_same(place: Place) -> None:
    """Of the fleet without a control side: from the roster, and what the gateway saw."""
    before = list(place.fleet.entries)
    first = entry("a", place.doubles.urls[0])
    place.fleet.entries = [
        msgspec.structs.replace(first, spec=dataclasses.replace(first.spec, url=place.doubles.urls[0])),
        entry("b", place.doubles.urls[1], state=LineState.DRAINING, reason="it is drained by hand"),
        entry("c", None, state=LineState.QUARANTINED, reason="it failed 3 times in 10 minutes"),
        entry("d", None),  # said to serve by a control side that is dead, as its process is
    ]
    place.fleet.followed()
    with place.fleet.client(place.keys["plain"]) as client:
        assert place.fleet.complete(client).status_code == 200
    said = asyncio.run(status(place.fleet.directory))
    lines = {line["name"]: line for line in said["lines"]}
    assert {name: line["state"] for name, line in lines.items()} == {
        "a": "serving", "b": "draining", "c": "quarantined", "d": "stopped",
    }  # fmt: skip
    assert lines["a"]["live"]["circuit"] == "closed" and lines["a"]["live"]["requests"] > 0
    shown = text(said, time.time())
    assert "c: it failed 3 times in 10 minutes" in shown and "b: it is drained by hand" in shown
    assert "d: its process has ended" in shown and "the control side is dead" in shown and "1 of 4" in shown
    place.fleet.entries = before
    place.fleet.followed()


def test_health_needs_no_key_and_models_do(place: Place) -> None:
    assert place.get("/health").status_code == 200
    assert place.get("/v1/models").status_code == 401
    assert place.get("/v1/models", place.keys["plain"]).status_code == 200
