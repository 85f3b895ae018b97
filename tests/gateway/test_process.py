"""A gateway process as the control side sees it: its start and its refusals to start, its end, and what it outlives."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.processes import MODEL, Doubles, Fleet, entry, fleet, simulated, until
from tests.lines.line_double import Script

from twinline.lines.roster import ModelSpec
from twinline.lines.state import LineState
from twinline.store.database import Database
from twinline.store.keys import Keys

TOKENS = list(range(10, 40))


@pytest.fixture
def doubles() -> Iterator[Doubles]:
    with Doubles(2) as made:
        for double in made.lines:
            double.script = lambda request: Script(TOKENS)
        yield made


class Streaming:
    """A stream that is read in a thread of its own."""

    def __init__(self, fleet: Fleet, tokens: int = len(TOKENS)) -> None:
        self.parts: list[bytes] = []
        self.error: Exception | None = None
        body = {
            "model": MODEL,
            "prompt": "Hi",
            "stream": True,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

        def read() -> None:
            try:
                with fleet.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
                    self.parts += answer.iter_bytes()
            except httpx.HTTPError as error:
                self.error = error

        self._thread = threading.Thread(target=read, daemon=True)
        self._thread.start()

    @property
    def events(self) -> list[Any]:
        return [event.removeprefix(b"data: ") for event in b"".join(self.parts).split(b"\n\n") if event]

    @property
    def text(self) -> str:
        chunks = [json.loads(event) for event in self.events if event != b"[DONE]"]
        return "".join(choice["text"] for chunk in chunks for choice in chunk.get("choices", ()))

    @property
    def whole(self) -> bool:
        return self.error is None and self.events[-1:] == [b"[DONE]"]

    def wait(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_it_says_when_it_is_ready_and_ends_when_told(tiny_folder: Path, doubles: Doubles) -> None:
    with fleet(tiny_folder) as made:
        made.entries = [entry("a", doubles.urls[0])]
        made.write()
        gateway = made.start()
        with made.client() as client:
            assert made.complete(client).status_code == 200
            doubles.lines[0].script = lambda request: Script(TOKENS, delay=0.02)
            stream = Streaming(made)
            until(lambda: stream.parts)
            assert gateway.stop() == 0
            stream.wait()
            assert stream.whole  # it was under way, and had the time
        with pytest.raises(httpx.ConnectError), made.client() as client:
            client.get("/health")


def test_it_leaves_once_it_has_answered_what_it_has(tiny_folder: Path, doubles: Doubles) -> None:
    with fleet(tiny_folder) as made:
        made.entries = [entry("a", doubles.urls[0])]
        made.write()
        gateway = made.start()
        doubles.lines[0].script = lambda request: Script(TOKENS, delay=7 / len(TOKENS))  # longer than after a signal
        stream = Streaming(made)
        until(lambda: stream.parts)
        with made.client() as client:
            assert client.post("/api/leave").status_code == 404  # no door for clients
        assert gateway.ask("/api/leave", "POST").status_code == 200
        until(lambda: not_connected(made))
        assert gateway.ask("/health").status_code == 200
        stream.wait()
        assert stream.whole and gateway.process.wait(10) == 0


def test_a_signal_ends_it_while_it_leaves(tiny_folder: Path, doubles: Doubles) -> None:
    with fleet(tiny_folder) as made:
        made.entries = [entry("a", doubles.urls[0])]
        made.write()
        gateway = made.start()
        doubles.lines[0].script = lambda request: Script(TOKENS, delay=1)
        stream = Streaming(made)
        until(lambda: stream.parts)
        assert gateway.ask("/api/leave", "POST").status_code == 200
        until(lambda: not_connected(made))
        assert gateway.stop() == 0
        stream.wait()
        assert not stream.whole and b"server_stopping" in b"".join(stream.parts)


def not_connected(fleet: Fleet) -> bool:
    try:
        with fleet.client() as client:
            client.get("/health")
    except httpx.ConnectError:
        return True
    return False


def test_a_fleet_without_lines_is_up_and_says_that_nothing_serves(tiny_folder: Path) -> None:
    with fleet(tiny_folder) as made:
        made.write()
        made.start()
        with made.client() as client:
            assert client.get("/health").status_code == 503
            assert made.complete(client).json()["error"]["code"] == "no_line"


@pytest.mark.parametrize(
    ("roster", "said"), [(None, "cannot be read"), ("{ no roster", "cannot be read"), ("{}", "cannot be read")]
)
def test_without_a_roster_it_does_not_start(tmp_path: Path, roster: str | None, said: str) -> None:
    if roster is not None:
        (tmp_path / "roster.json").write_text(roster)
    argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(tmp_path)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1 and said in ran.stderr and "Traceback" not in ran.stderr and not ran.stdout


def test_an_address_that_is_taken(tiny_folder: Path) -> None:
    with fleet(tiny_folder) as made, socket.socket() as other:
        other.bind(("127.0.0.1", made.settings.port))  # by a program that does not share it
        other.listen()
        made.write()
        argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(made.directory)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1 and not ran.stdout
    records = [json.loads(line) for line in ran.stderr.splitlines()]
    assert records[-1]["level"] == "critical" and "in use" in records[-1]["message"] and "exception" not in records[-1]


def test_workers_share_an_address_and_one_outlives_another(tiny_folder: Path, doubles: Doubles) -> None:
    with fleet(tiny_folder, workers=2) as made:
        made.entries = [entry("a", doubles.urls[0])]
        made.write()
        gateways = [made.start(0), made.start(1)]
        assert made.settings.port  # one for both
        for gateway in gateways:
            assert gateway.ask("/health").status_code == 200

        def asked() -> list[int]:
            lines = [gateway.ask("/api/lines").json()["lines"][0] for gateway in gateways]
            return [line["requests"] for line in lines]

        def once() -> bool:
            with made.client() as client:  # a new connection, which the kernel gives to either
                assert made.complete(client).status_code == 200
            return all(asked())

        until(once)
        gateways[1].process.kill()
        gateways[1].process.wait()
        for _ in range(10):
            with made.client() as client:
                assert made.complete(client).status_code == 200
        again = made.start(1)
        assert again.ask("/health").status_code == 200


def test_it_needs_no_control_side(tiny_folder: Path, doubles: Doubles) -> None:
    """Nobody listens where faults are told and lines change: requests are answered all the same, and moves made."""
    with fleet(tiny_folder) as made:
        made.entries = [entry("a", doubles.urls[0]), entry("b", doubles.urls[1])]
        made.write()
        gateway = made.start()
        doubles.lines[0].script = lambda request: Script(
            fault="refuse", status=500, error={"message": "a card fell off"}
        )
        with made.client() as client:

            def told() -> bool:
                assert made.complete(client).status_code == 200
                return any("does not hear of line a" in record["message"] for record in gateway.records())

            until(told)


def test_a_gateway_that_was_stopped_goes_on_and_blames_nobody(tiny_folder: Path, doubles: Doubles) -> None:
    """As a laptop does that slept: its lines went on, and their tokens waited in its sockets."""
    for double in doubles.lines:
        double.script = lambda request: Script(TOKENS, delay=0.1)
    with fleet(tiny_folder) as made:
        made.entries = [entry("a", doubles.urls[0]), entry("b", doubles.urls[1])]
        made.write()
        gateway = made.start()
        streams = [Streaming(made) for _ in range(6)]
        until(lambda: all(stream.parts for stream in streams))
        gateway.process.send_signal(signal.SIGSTOP)
        asked = [len(double.requests) for double in doubles.lines]
        until(lambda: all(double.active == 0 for double in doubles.lines))  # seconds: past every patience
        gateway.process.send_signal(signal.SIGCONT)
        for stream in streams:
            stream.wait()
            assert stream.whole
        assert asked == [len(double.requests) for double in doubles.lines]  # nothing was asked for again
        assert all(line["circuit"] == "closed" for line in gateway.ask("/api/lines").json()["lines"])


def test_engines_die_under_it(tiny_folder: Path) -> None:
    """kill -9 and SIGSTOP of real processes: every stream ends whole, with one text."""
    speed = ("--decode-tokens-per-second", "100", "--prefill-tokens-per-second", "1e6")
    one_line, another = simulated(tiny_folder, *speed), simulated(tiny_folder, *speed)
    with one_line as (first, one), another as (_, two), fleet(tiny_folder) as made:
        made.entries = [entry("a", one), entry("b", two)]
        made.models = (ModelSpec(name=MODEL, text=str(tiny_folder), policy="weighted"),)  # both have streams
        made.write()
        gateway = made.start()
        plain = Streaming(made, 450)  # 4.5 s: both blows must come under them
        plain.wait()
        assert plain.whole and len(plain.text) > 300
        for number, blow in ((signal.SIGSTOP, "stalled"), (signal.SIGKILL, "broken")):
            until(lambda: all(line["ready"] for line in gateway.ask("/api/lines").json()["lines"]))
            streams = [Streaming(made, 450) for _ in range(8)]
            until(lambda streams=streams: all(len(stream.parts) > 5 for stream in streams))
            first.send_signal(number)
            for stream in streams:
                stream.wait()
                assert stream.whole and stream.text == plain.text, blow
            first.send_signal(signal.SIGCONT)
        metrics = gateway.ask("/metrics").text
        for reason in ("stalled", "broken"):
            assert f'moves_from_total{{line="a",model="{MODEL}",reason="{reason}"}}' in metrics
        made.entries[0] = entry("a", None, state=LineState.STOPPED, reason="its process ended: killed by signal 9")
        made.followed()
        health = gateway.ask("/health").json()
        assert health["status"] == "degraded"
        assert health["models"][MODEL]["lines"]["a"]["reason"] == "its process ended: killed by signal 9"


def test_keys_come_and_go_while_it_runs(tiny_folder: Path, doubles: Doubles) -> None:
    with fleet(tiny_folder, keys="required") as made:
        made.entries = [entry("a", doubles.urls[0])]
        made.write()
        made.start()
        database = Database(f"sqlite:///{made.directory / 'twinline.db'}")
        keys = Keys(database)
        _, secret = keys.create("late")
        with made.client(secret) as client:
            until(lambda: made.complete(client).status_code == 200)
            keys.revoke("late")
            until(lambda: made.complete(client).status_code == 401)
        database.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def certified(certificate: Path, key: Path) -> ssl.SSLContext:
    """Makes a pair; what trusts it alone."""
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    made = [path.with_suffix(".made") for path in (certificate, key)]
    subprocess.run(["openssl", *command.split(), "-keyout", made[1], "-out", made[0]], check=True, capture_output=True)
    made[1].replace(key)
    made[0].replace(certificate)
    return ssl.create_default_context(cafile=str(certificate))


def test_tls_by_file(tiny_folder: Path, tmp_path: Path, doubles: Doubles) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    trusted = certified(certificate, key)
    with fleet(tiny_folder, tls_certificate=str(certificate), tls_key=str(key)) as made:
        made.entries = [entry("a", doubles.urls[0])]
        made.write()
        gateway = made.start()
        url = made.url.replace("http", "https")
        with httpx.Client(base_url=url, verify=trusted, timeout=20) as client:
            assert made.complete(client).status_code == 200
        with pytest.raises(httpx.HTTPError), made.client() as client:
            client.get("/health")
        assert gateway.ask("/health").status_code == 200

        def shown(by: ssl.SSLContext) -> bool:
            try:
                return httpx.get(f"{url}/health", verify=by, timeout=20).status_code == 200
            except httpx.ConnectError:
                return False

        fresh = certified(certificate, key)  # renewed where it lies: no restart
        until(lambda: shown(fresh))
        assert not shown(trusted)
        certificate.write_text("half of a cert")
        until(lambda: any("the certificate from before is shown" in line for line in gateway.log()))
        assert shown(fresh)
        last = certified(certificate, key)
        until(lambda: shown(last))
