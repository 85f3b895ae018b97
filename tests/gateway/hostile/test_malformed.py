"""Bytes that are nearly HTTP: each is refused with a 400 and closed, or read in the one way that leaves no doubt."""

from __future__ import annotations

import pytest
from tests.gateway.hostile.conftest import Attacked
from tests.gateway.hostile.wire import BODY, HEALTH, chunked, framed, post, said

TE = b"transfer-encoding: chunked\r\n"
REFUSED = {
    "both framings": post(TE + b"content-length: 5\r\n\r\n") + chunked(),
    "both, the other way": post(b"content-length: %d\r\n" % len(BODY) + TE + b"\r\n") + BODY,
    "two equal lengths": post(b"content-length: %d\r\n" % len(BODY) * 2 + b"\r\n") + BODY,
    "two lengths": post(b"content-length: 3\r\ncontent-length: %d\r\n\r\n" % len(BODY)) + BODY,
    "a list of lengths": post(b"content-length: %d, %d\r\n\r\n" % (len(BODY), len(BODY))) + BODY,
    "a plus": post(b"content-length: +%d\r\n\r\n" % len(BODY)) + BODY,
    "a minus": post(b"content-length: -5\r\n\r\n") + BODY,
    "hexadecimal": post(b"content-length: 0x10\r\n\r\n") + BODY,
    "a length of 24 digits": post(b"content-length: 999999999999999999999999\r\n\r\n") + BODY,
    "an unknown coding": post(b"transfer-encoding: xchunked\r\n\r\n") + chunked(),
    "chunked is not last": post(b"transfer-encoding: chunked, identity\r\n\r\n") + chunked(),
    "chunked twice": post(TE + TE + b"\r\n") + chunked(),
    "a space before the colon": post(b"transfer-encoding : chunked\r\n\r\n") + chunked(),
    "a vertical tab": post(b"transfer-encoding:\x0bchunked\r\n\r\n") + chunked(),
    "bare line feeds": HEALTH.replace(b"\r\n", b"\n") + b"\n",
    "bare carriage returns": HEALTH.replace(b"\r\n", b"\r") + b"\r",
    "NUL in a name": HEALTH + b"x\0y: 1\r\n\r\n",
    "NUL in a value": HEALTH + b"x: 1\0\r\n\r\n",
    "a line feed in a value": HEALTH + b"x: 1\nauthorization: 2\r\n\r\n",
    "a folded line": HEALTH + b"x: 1\r\n  more\r\n\r\n",
    "a space in a name": HEALTH + b"x y: 1\r\n\r\n",
    "a name that is not ASCII": HEALTH + b"x\xff: 1\r\n\r\n",
    "another scheme": b"GET unix:///etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
    "no method": b"G@T /health HTTP/1.1\r\nhost: x\r\n\r\n",
    "a path that is not ASCII": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "a chunk of 18 digits": post(TE + b"\r\n") + b"fffffffffffffffff\r\nabc",
    "a negative chunk": post(TE + b"\r\n") + b"-1\r\nabc",
    "a chunk's head with a line feed": post(TE + b"\r\n") + b"%x;a\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a chunk that is longer than it says": post(TE + b"\r\n") + b"2\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_the_connection_closed(attacked: Attacked, name: str) -> None:
    attacked.good(True)
    got, closed = said(attacked.address, REFUSED[name])
    assert closed
    assert [answer.status for answer in got] == [400]
    assert got[0].error["type"] == "invalid_request_error"
    assert got[0].headers["connection"] == "close"


@pytest.mark.parametrize("data", [REFUSED["both framings"], REFUSED["a folded line"]])
def test_what_follows_a_refusal_is_not_read(attacked: Attacked, data: bytes) -> None:
    got, closed = said(attacked.address, data + HEALTH + b"\r\n")
    assert closed and len(got) == 1


SMUGGLED = HEALTH + b"\r\n"


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.3, x"])
@pytest.mark.parametrize("name", [b"upgrade", b"Upgrade", b"UPGRADE"])
@pytest.mark.parametrize("together", [True, False])
def test_a_body_is_no_request_when_an_upgrade_is_asked_for(
    attacked: Attacked, protocol: bytes, name: bytes, together: bool
) -> None:
    """httptools takes what follows such a head for another protocol, and what follows that for requests."""
    attacked.good(True)
    head = post(b"connection: upgrade, http2-settings\r\n%s: %s\r\nhttp2-settings: AAA\r\n" % (name, protocol))
    head += b"content-length: %d\r\n\r\n" % len(SMUGGLED)
    parts = [head + SMUGGLED] if together else [head, SMUGGLED]
    got, _ = said(attacked.address, *parts)
    assert [answer.status for answer in got] == [400]  # a body that is no JSON


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 10])
def test_a_body_behind_a_head_that_came_in_pieces_keeps_its_length(attacked: Attacked, cut: int) -> None:
    """Where the words for another protocol stand in a body they are no header: one that grew would leave a request."""
    attacked.good(True)
    smuggled = HEALTH.replace(b"x\r\n", b"xy\r\n") + b"\r\n"  # an even length
    body = b"{" + b"\r\nUpgrade:" * (len(smuggled) // 2) + smuggled
    head = post(b"content-length: %d\r\n\r\n" % len(body))
    got, closed = said(attacked.address, head[:-cut], head[-cut:] + body, quiet=0.3)
    assert [answer.status for answer in got] == [400] and not closed


@pytest.mark.parametrize("before", [b"Upgrade: ", b"\nUpgrade: ", b"\r\nUpgrade: "])
def test_no_other_protocol_is_spoken_where_a_head_comes_in_pieces(attacked: Attacked, before: bytes) -> None:
    attacked.good(True)
    data = framed(extra=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    cut = data.index(before)
    (answer,), closed = said(attacked.address, data[:cut], data[cut:])
    assert answer.status == 200 and not closed


def test_a_client_that_would_rather_speak_another_protocol_is_answered(attacked: Attacked) -> None:
    """As Java's does with every request."""
    attacked.good(True)
    head = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"
    got, closed = said(attacked.address, framed(extra=head), HEALTH + b"\r\n", expect=2)
    assert [answer.status for answer in got] == [200, 200] and not closed
    assert got[0].headers["content-type"] == "application/json"


def test_trailers_are_no_headers(attacked: Attacked) -> None:
    attacked.good(True)
    data = post(TE + b"\r\n") + chunked(trailers=b"x-request-id: from-the-trailer\r\nx-request-timeout-s: nonsense\r\n")
    for parts in ([data], [data[:-40], data[-40:]]):
        (answer,), _ = said(attacked.address, *parts)
        assert answer.status == 200
        assert answer.headers["x-request-id"] != "from-the-trailer"


@pytest.mark.parametrize(
    "data",
    [
        post(TE + b"\r\n") + b"5;" + b"a" * 400_000,
        post(TE + b"\r\n") + b"5\r\nhello\r\n0\r\nx: " + b"a" * 400_000,
        post(TE + b"\r\n") + b"5\r\nhello\r\n0\r\n" + b"x: a\r\n" * 70_000,
        post(TE + b"\r\n") + b"1\r\na\r\n" * 70_000,
    ],
    ids=["an extension", "a trailer", "trailers", "chunks of one byte"],
)
def test_framing_may_not_outweigh_the_body(attacked: Attacked, data: bytes) -> None:
    got, closed = said(attacked.address, data)
    assert closed
    assert not got or (len(got) == 1 and "framing" in got[0].error["message"])


def test_small_chunks_are_fine(attacked: Attacked) -> None:
    attacked.good(True)
    body = b"".join(b"4;x=1\r\n%s\r\n" % BODY[at : at + 4].ljust(4) for at in range(0, len(BODY), 4)) + b"0\r\n\r\n"
    (answer,), _ = said(attacked.address, post(TE + b"\r\n") + body)
    assert answer.status == 200


@pytest.mark.parametrize(
    ("data", "statuses", "closes"),
    [
        (b"GET http://elsewhere.example/v1/models HTTP/1.1\r\nhost: x\r\n\r\n", [200], False),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", [200], True),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", [404], False),
        (b"TRACE /health HTTP/1.1\r\nhost: x\r\n\r\n", [405], False),
        (b"OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\norigin: http://evil\r\n\r\n", [405], False),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", [404], False),
        (b"GET /v1/models/../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", [404], False),
        (b"GET /%ff%00%0d%0a HTTP/1.1\r\nhost: x\r\n\r\n", [404], False),
        (b"GET /nothing HTTP/1.1\r\nhost: [x\r\n\r\n", [404], False),
        (b"GET /nothing HTTP/1.1\r\nhost: a/b?c#d\r\n\r\n", [404], False),
        ((HEALTH + b"\r\n") * 3, [200, 200, 200], False),
        (framed() + HEALTH + b"\r\n" + framed(), [200, 200, 200], False),
        (framed(extra=b"connection: close\r\n") + HEALTH + b"\r\n", [200], True),
    ],
)
def test_what_is_unusual_but_plain_is_answered(
    attacked: Attacked, data: bytes, statuses: list[int], closes: bool
) -> None:
    attacked.good(True)
    got, closed = said(attacked.address, data, expect=len(statuses))
    assert [answer.status for answer in got] == statuses and closed == closes
    for answer in got:
        assert not any(name.startswith("access-control") for name in answer.headers)
        if answer.status >= 400:
            assert answer.error


def test_head_has_no_body(attacked: Attacked) -> None:
    attacked.good(True)
    head = attacked.client.head("/health")
    assert (head.status_code, head.content) == (200, b"")
    assert attacked.client.get("/health").status_code == 200


def test_a_body_that_was_not_asked_for_is_no_request(attacked: Attacked) -> None:
    """After `Expect: 100-continue` a client that was refused may send the body or not."""
    attacked.good(True)
    got, _ = said(
        attacked.address, post(b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY)), BODY, expect=2
    )
    assert [answer.status for answer in got] == [100, 200]
    head = b"GET /nothing HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n"
    got, closed = said(attacked.address, head, HEALTH + b"\r\n")
    assert [answer.status for answer in got] == [404] and closed
