"""Who may look and who may manage: without a key nobody manages over TCP, and a stranger learns only if all is well."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.hostile.conftest import ADMIN, Attacked
from tests.gateway.hostile.hostile_line import HostileLine, bytes_of
from tests.gateway.hostile.wire import HEALTH, framed, said

from twinline.gateway.access import Access
from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.store.keys import Key
from twinline.store.ring import KeyRing

API = ["/api/lines", "/api/metrics", "/api/state", "/api/apply", "/api/drain", "/api/resume"]


class Ring:
    """Keys without a database."""

    def __init__(self, **keys: Key) -> None:
        self._keys = keys

    def find(self, secret: str) -> Key | None:
        return self._keys.get(secret)

    def why_not(self, secret: str) -> str:
        return "The key is not known here."


def ring(**keys: Key) -> KeyRing:
    return Ring(**keys)  # type: ignore[return-value]


def key(name: str, **fields: Any) -> Key:
    return Key(id=name, name=name, created=0.0, **fields)


def asked(app: App, path: str, secret: str | None = None, method: str = "GET", client: str = "10.1.2.3") -> Any:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=(client, 5), raise_app_exceptions=False)
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
            return await made.request(method, path, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("admin", [None, ""])
@pytest.mark.parametrize("secret", [None, "", " ", "guess", "None"])
@pytest.mark.parametrize("path", API)
@pytest.mark.parametrize("client", ["127.0.0.1", "10.1.2.3"])
def test_without_a_management_key_nobody_manages_over_tcp(
    admin: str | None, secret: str | None, path: str, client: str
) -> None:
    """Keys are off and the caller is on this machine: it is still no manager. An empty key is no key."""
    app = App(Door([], Access(admin=admin)), control="unix:///nowhere")
    method = "GET" if path in ("/api/lines", "/api/metrics", "/api/state") else "POST"
    answer = asked(app, path, secret, method, client)
    assert answer.status_code in (401, 403)
    assert answer.json()["error"]["type"] in ("authentication_error", "permission_error")


def test_the_management_key_or_an_administrators_opens_the_api() -> None:
    ours = ring(user=key("user"), admin=key("admin", admin=True))
    app = App(Door([], Access(ours, admin="secret")))
    wanted = {None: 401, "user": 403, "secret": 200, "admin": 200, "secre": 403, "secretx": 403}
    assert {secret: asked(app, "/api/lines", secret).status_code for secret in wanted} == wanted


def test_a_stranger_learns_only_whether_it_works(attacked: Attacked) -> None:
    attacked.good(True)
    door = Door(attacked.door.models, Access(ring(mine=key("mine"), other=key("other", models=("elsewhere",)))))
    app = App(door)
    stranger = asked(app, "/health")
    assert stranger.status_code == 200 and stranger.json() == {"status": "ok"}
    assert asked(app, "/health", "wrong").json() == {"status": "ok"}
    for answer in (asked(app, "/health", "mine"), asked(app, "/health", client="127.0.0.1")):
        assert set(answer.json()) == {"status", "version", "models"}
    assert asked(app, "/metrics").status_code == 401
    assert asked(app, "/metrics", "mine").status_code == 200
    assert asked(app, "/v1/models").status_code == 401
    assert asked(app, "/v1/models/tiny-r1", "mine").status_code == 200
    assert asked(app, "/v1/models", "other").json()["data"] == []
    assert asked(app, "/v1/models/tiny-r1", "other").status_code == 404


def test_what_is_handed_on_is_the_path_and_no_header(tmp_path: Path) -> None:
    """A Host header that looks like a path, a query that looks like a request: the control side gets a plain one."""
    seen: list[str] = []

    async def main() -> None:
        async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await reader.readuntil(b"\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        server = await asyncio.start_unix_server(control, str(tmp_path / "c.sock"))
        app = App(Door([], Access(admin="secret")), control=f"unix://{tmp_path / 'c.sock'}")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            headers = {"authorization": "Bearer secret", "host": "x/../../faults?"}
            answer = await client.get("/api/state?after=1%0d%0aDELETE+/", headers=headers)
            assert answer.status_code == 200
            big = await client.post("/api/drain", headers=headers, content=b"a" * (2 << 20))
            assert big.status_code == 413
        server.close()

    asyncio.run(main())
    assert seen == ["GET /state?after=1%0d%0aDELETE+/ HTTP/1.1\r\n"]


def test_nothing_a_client_sends_makes_the_gateway_connect(attacked: Attacked) -> None:
    """Only lines are asked. A trap listens, and every field that could hold an address names it."""
    attacked.good(True)
    trap = HostileLine()
    where: list[str] = []

    async def start() -> None:
        where.append(await trap.start())

    attacked.do(start())
    trap.answer = bytes_of(b"HTTP/1.1 200 OK\r\n\r\n")
    url = where[0]
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": url, "image_url": url}]}]},
        {"messages": [{"role": "user", "content": url, "name": url}], "tools": [{"type": "mcp", "server_url": url}]},
        {"messages": [{"role": "user", "content": url}], "chat_template_kwargs": {"include": url, "documents": [url]}},
        {"messages": [{"role": "user", "content": url}], "user": url, "metadata": {"url": url}, "url": url},
        {"messages": [{"role": "user", "content": url}], "model": url},
        {"messages": [{"role": "user", "content": url}], "model": f"tiny-r1@{url}"},
    ]
    for body in bodies:
        answer = attacked.client.post(
            "/v1/chat/completions",
            json={"model": "tiny-r1", "max_tokens": 1, **body},
            headers={"host": url.removeprefix("http://"), "forwarded": f"host={url}", "referer": url},
        )
        assert answer.status_code < 500
    assert attacked.client.get(f"/v1/models/{url}").status_code == 404
    assert trap.open == trap.requests == 0
    attacked.do(trap.stop())


def test_the_management_key_works_over_tcp(attacked: Attacked) -> None:
    headers = {"authorization": f"Bearer {ADMIN}"}
    assert {line["name"] for line in attacked.client.get("/api/lines", headers=headers).json()["lines"]} == {
        "hostile",
        "good",
    }
    assert attacked.client.get("/api/lines").status_code == 401


OTHERS = [b"evil.example", b"evil.example:8000", b"127.0.0.1.evil.example", b"EVIL.example.", b"localhost.evil.example",
          b"127.1", b"1.2.3.4.5", b"a@b.c", b"evil.example:80:90"]  # fmt: skip
OURS = [b"localhost:8000", b"127.0.0.1:8000", b"[::1]:8000", b"[::1]", b"x", b"10.1.2.3", b"a.localhost", b"",
        b"host.docker.internal:8000", b"mine.local"]  # fmt: skip


def as_host(host: bytes, *requests: bytes) -> bytes:
    return b"".join(requests).replace(b"host: x\r\n", b"host: %s\r\n" % host)


@pytest.mark.parametrize("host", OTHERS)
def test_without_keys_nobody_is_answered_who_asks_by_another_sites_name(attacked: Attacked, host: bytes) -> None:
    """A page whose name was made to stand for 127.0.0.1 may read what comes from there."""
    attacked.good(True)
    attacked.complete(max_tokens=2)  # from now on its form is known
    models, metrics = (b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in (b"/v1/models", b"/metrics"))
    got, _ = said(attacked.address, as_host(host, framed(), framed(), models, metrics), expect=4)
    assert [answer.status for answer in got] == [403] * 4
    assert {answer.error["code"] for answer in got} == {"host_not_allowed"}
    (health,), _ = said(attacked.address, as_host(host, HEALTH, b"\r\n"))
    assert health.status == 200 and json.loads(health.body) == {"status": "ok"}


@pytest.mark.parametrize("host", OURS)
def test_without_keys_this_machines_names_are_answered(attacked: Attacked, host: bytes) -> None:
    attacked.good(True)
    got, _ = said(attacked.address, as_host(host, framed(), framed(), HEALTH, b"\r\n"), expect=3)
    assert [answer.status for answer in got] == [200] * 3
    assert "models" in json.loads(got[2].body)


CROSS = b"sec-fetch-site: cross-site\r\n"


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        (CROSS, 403),
        (CROSS + b"origin: https://site.example\r\n", 403),
        (CROSS + b"origin: http://127.0.0.1:3000\r\n", 403),
        (CROSS + b"origin: null\r\n", 403),
        (CROSS + b"origin: app://obsidian.md\r\n", 200),  # a desktop application's, which no site can have
        (CROSS + b"origin: file://\r\n", 200),
        (b"sec-fetch-site: same-site\r\n", 200),
        (b"sec-fetch-site: same-origin\r\n", 200),
    ],
)
def test_without_keys_pages_of_other_sites_make_no_requests(attacked: Attacked, extra: bytes, status: int) -> None:
    attacked.good(True)
    for _ in range(2):
        (answer,), _ = said(attacked.address, framed(extra=extra))
        assert answer.status == status


def test_with_keys_any_name_will_do_but_is_not_this_machine(attacked: Attacked) -> None:
    app = App(Door(attacked.door.models, Access(ring(mine=key("mine")))))
    for host, near in (("gateway.example", False), ("localhost", True)):
        url = f"http://{host}"
        assert asked(app, f"{url}/metrics", client="127.0.0.1").status_code == (200 if near else 401)
        assert ("models" in asked(app, f"{url}/health", client="127.0.0.1").json()) == near
        assert asked(app, f"{url}/v1/models", "mine", client="127.0.0.1").status_code == 200
