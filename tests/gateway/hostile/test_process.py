"""The gateway's process: doors that would be open by mistake are not opened, TLS by file, secrets that stay secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from tests.gateway.harness import MODEL, SPEC
from tests.lines.line_double import LineDouble

from twinline.gateway.process import check
from twinline.lines import roster
from twinline.lines.roster import Entry, GatewaySpec, ModelSpec, Roster
from twinline.lines.state import LineState
from twinline.store.database import Database
from twinline.store.keys import Keys

HERE = Path(__file__).parent
CERTIFICATE, KEY, LOCKED = (str(HERE / name) for name in ("certificate.pem", "key.pem", "locked_key.pem"))
ADMIN, REMOTE = "admin-6f1c2b", "remote-77aa01"
SECRETS = {"THE_ADMIN_KEY": ADMIN, "THE_REMOTE_KEY": REMOTE}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": "0.0.0.0"}, "anybody could use it"),
        ({"host": "::"}, "anybody could use it"),
        ({"host": "192.0.2.1"}, "anybody could use it"),
        ({"host": ""}, "anybody could use it"),
        ({"host": "no-such-host.invalid"}, "anybody could use it"),
        ({"keys": "Required"}, "required or off"),
        ({"keys": ""}, "required or off"),
        ({"admin_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"admin_key_env": "SET_BUT_EMPTY"}, "SET_BUT_EMPTY"),
        ({"tls_key": KEY}, "plain HTTP"),
        ({"tls_certificate": "/no/such.pem", "tls_key": KEY}, "/no/such.pem cannot be read: No such file"),
        ({"tls_certificate": CERTIFICATE, "tls_key": "/no/such.pem"}, "/no/such.pem cannot be read: No such file"),
        ({"tls_certificate": CERTIFICATE, "tls_key": CERTIFICATE}, "hold no certificate with its key"),
        ({"tls_certificate": __file__, "tls_key": KEY}, "hold no certificate with its key"),
        ({"tls_certificate": CERTIFICATE, "tls_key": LOCKED}, "without a password"),
    ],
)
def test_a_door_that_would_be_open_by_mistake_is_not_opened(
    fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_BUT_EMPTY", "")
    with pytest.raises(ValueError, match=words) as refused:
        check(GatewaySpec(**fields))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [{"host": "127.0.0.1"}, {"host": "localhost"}, {"host": "::1"}, {"host": "127.5.5.5"},
     {"host": "0.0.0.0", "keys": "required"}, {"tls_certificate": CERTIFICATE, "tls_key": KEY}],
)  # fmt: skip
def test_a_door_that_is_meant_so_is_opened(fields: dict[str, Any]) -> None:
    check(GatewaySpec(**fields))


def written(directory: Path, text: Path, url: str, **gateway: Any) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    specs = {
        "here": replace(SPEC, name="here"),
        "far": replace(SPEC, name="far", engine="openai", weights=None, url=url, api_key_env="THE_REMOTE_KEY"),
    }
    entries = tuple(
        Entry(name=name, spec=spec, state=LineState.SERVING, reason="the test says so", url=url)
        for name, spec in specs.items()
    )
    models = (ModelSpec(name=MODEL, text=str(text), policy="prefer", order=("here", "far")),)
    told = Roster(fleet="f", generation=1, gateway=GatewaySpec(**gateway), models=models, entries=entries)
    roster.write(directory, told)


def started(directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "twinline.gateway.process", "--run", str(directory)],
            env={**os.environ, **SECRETS},
            stdout=subprocess.PIPE,
            stderr=log,
        )


@contextmanager
def gateway(directory: Path, text: Path, url: str, **settings: Any) -> Iterator[tuple[str, int]]:
    """Its address and its process, once it answers."""
    written(directory, text, url, port=free_port(), **settings)
    process = started(directory)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (directory / "log").read_text()
        yield msgspec.json.decode(line)["url"], process.pid
    finally:
        process.terminate()
        process.wait(15)
        process.stdout.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A line's double in a thread; the store lies in the test's folder."""
    monkeypatch.setenv("TWINLINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TWINLINE_DATABASE_URL", raising=False)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    double = LineDouble()
    yield asyncio.run_coroutine_threadsafe(double.start(), loop).result(5)
    asyncio.run_coroutine_threadsafe(double.stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_it_ends_with_one_clear_line(tmp_path: Path, tiny_folder: Path, line: str) -> None:
    written(tmp_path / "run", tiny_folder, line, port=free_port(), host="0.0.0.0", keys="off")
    process = started(tmp_path / "run")
    assert process.wait(20) == 1
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    (told,) = (tmp_path / "run" / "log").read_text().splitlines()
    assert "keys cannot be off at 0.0.0.0" in told


def test_tls_serves_the_openai_client_and_no_plain_one(tmp_path: Path, tiny_folder: Path, line: str) -> None:
    settings = {"tls_certificate": CERTIFICATE, "tls_key": KEY}
    with gateway(tmp_path / "run", tiny_folder, line, **settings) as (url, _):
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with httpx.Client(verify=context, trust_env=False) as trusting:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=trusting, max_retries=0)
            whole = client.completions.create(model=MODEL, prompt="Hi", max_tokens=3)
            assert whole.usage is not None and whole.usage.completion_tokens == 3
            pieces = client.completions.create(model=MODEL, prompt="Hi", max_tokens=3, stream=True)
            assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        host, port = url.removeprefix("https://").split(":")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{host}:{port}/v1/models", trust_env=False, timeout=5)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(ValueError):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)), socket.create_connection((host, int(port)), 5) as plain:
            old.wrap_socket(plain)


def test_no_secret_is_written_or_told(tmp_path: Path, tiny_folder: Path, line: str) -> None:
    with contextlib.closing(Database()) as database:
        _, mine = Keys(database).create("mine")
    settings = {"keys": "required", "admin_key_env": "THE_ADMIN_KEY", "access_log": True, "log_prompts": True}
    told = []
    with (
        gateway(tmp_path / "run", tiny_folder, line, **settings) as (url, pid),
        httpx.Client(base_url=url, trust_env=False, timeout=20) as client,
    ):
        wrong = mine[:-4] + "AAAA"
        for secret in (mine, wrong, ADMIN, REMOTE):
            headers = {"authorization": f"Bearer {secret}", "x-request-id": "r1"}
            for body in ({"model": MODEL}, {"model": f"{MODEL}@far"}, {"model": f"{MODEL}@far", "tools": [1]}, {}):
                asked = {"prompt": "Hi", "max_tokens": 1, **body}
                told.append(client.post("/v1/completions", json=asked, headers=headers))
            told += [client.get(path, headers=headers) for path in ("/v1/models", "/health", "/metrics")]
            told += [client.get(path, headers=headers) for path in ("/api/lines", "/api/metrics", "/api/state", "/x")]
        assert {answer.status_code for answer in told} >= {200, 400, 401, 403, 404}
        assert client.get("/api/lines", headers={"authorization": f"Bearer {ADMIN}"}).status_code == 200
        assert stat.S_IMODE((tmp_path / "run" / "gateway-0.sock").stat().st_mode) == 0o600
        arguments = Path(f"/proc/{pid}/cmdline")
        shown = arguments.read_bytes() if arguments.exists() else b""
    secrets = [mine, wrong, ADMIN, REMOTE]
    for answer in told:
        text = answer.text + json.dumps(dict(answer.headers))
        assert not [secret for secret in secrets if secret in text]
    assert not [secret for secret in secrets if secret.encode() in shown]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"log", "roster.json", "twinline.db"} <= {path.name for path in files}
    for path in files:
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in data], path
    assert "Hi" in (tmp_path / "run" / "log").read_text()  # prompts are there when asked for
