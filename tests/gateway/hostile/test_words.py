"""What clients write into headers and fields: it makes no header, no line of a log and no large answer."""

from __future__ import annotations

import logging
import time

import pytest
from tests.gateway.hostile.conftest import Attacked
from tests.gateway.hostile.wire import BODY, framed, said

EVIL = "x\r\nset-cookie: a=b\n2026-01-01 CRITICAL root: stolen\x1b[31m\x00\u2028"


@pytest.mark.parametrize(
    "given",
    [b"a b", b"a" * 200, b"a%0d%0aset-cookie: x", b"\xff\xfe", b"<script>", b"a\tb", b'a"b', b"", b"a;b=c"],
)
def test_a_request_id_that_is_no_token_is_not_repeated(attacked: Attacked, given: bytes) -> None:
    attacked.good(True)
    (answer,), _ = said(attacked.address, framed(extra=b"x-request-id: " + given + b"\r\n"))
    assert answer.status == 200
    assert answer.headers["x-request-id"].isalnum() and len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "given", [b"zz", b"\xff" * 60, b"00-" + b"a" * 5000, b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00"]
)
def test_a_trace_that_is_none_changes_nothing(attacked: Attacked, given: bytes) -> None:
    attacked.good(True)
    (answer,), _ = said(
        attacked.address, framed(extra=b"traceparent: " + given + b"\r\ntracestate: " + given + b"\r\n")
    )
    assert answer.status == 200
    assert given.decode("latin-1") not in str(answer.headers)


@pytest.mark.parametrize(
    "model",
    [EVIL, "", "@", "tiny-r1@", "tiny-r1@good@good", "tiny-r1@../../x", f"tiny-r1@{EVIL}", "../tiny-r1", "m" * 100_000,
     "tiny-r1\x00", "TINY-R1", "tiny-r1 "],
)  # fmt: skip
def test_a_strange_model_is_not_found_and_makes_one_line_of_the_log(
    attacked: Attacked, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "twinline"):
        answer = attacked.client.post("/v1/completions", json={"model": model, "prompt": "Hi"})
        end = time.monotonic() + 60
        while not any(record.name == "twinline.gateway.endpoint" for record in caplog.records):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert answer.status_code == 404
    assert len(answer.content) < 9000 and "set-cookie" not in answer.headers
    (told,) = [record.getMessage() for record in caplog.records if record.name == "twinline.gateway.endpoint"]
    assert told.isprintable() and len(told) < 2000


def test_a_strange_name_in_a_path_is_not_found(attacked: Attacked) -> None:
    for name in (
        "%0d%0aset-cookie:%20a=b",
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "a" * 20_000,
        "%ff%fe",
        "tiny-r1%40nowhere",
    ):
        answer = attacked.client.get(f"/v1/models/{name}")
        assert "set-cookie" not in answer.headers and len(answer.content) < 9000
        assert answer.status_code == (200 if name.startswith("tiny-r1") else 404)


DEEP = b"[" * 100_000
BAD_BODIES = {
    "depth": DEEP,
    "depth in a field that nobody reads": b'{"model":"tiny-r1","prompt":"a","zz":' + DEEP + b"]" * 100_000 + b"}",
    "depth in tools": b'{"model":"tiny-r1","messages":[{"role":"user","content":"a"}],"tools":' + DEEP,
    "depth in objects": b'{"model":"tiny-r1","prompt":"a","zz":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "depth in a prompt": b'{"model":"tiny-r1","prompt":' + DEEP + b"]" * 100_000 + b"}",
    "half a surrogate pair": b'{"model":"tiny-r1","prompt":"\\ud800"}',
    "no UTF-8": b'{"model":"tiny-r1","prompt":"\xff\xfe"}',
    "overlong UTF-8": b'{"model":"tiny-r1","prompt":"\xc0\xaf"}',
    "NaN": b'{"model":"tiny-r1","prompt":"a","temperature":NaN}',
    "infinity": b'{"model":"tiny-r1","prompt":"a","temperature":1e999}',
    "an infinite bias": b'{"model":"tiny-r1","prompt":"a","logit_bias":{"1":1e400}}',
    "a number of 10,000 digits": b'{"model":"tiny-r1","prompt":[' + b"1" * 10_000 + b"]}",
    "a token of 30 digits": b'{"model":"tiny-r1","prompt":[' + b"1" * 30 + b"]}",
    "a negative token": b'{"model":"tiny-r1","prompt":[-1]}',
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "nothing": b"",
    "null": b"null",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xed\xc1\x01\x0d\x00\x00\x00\xc2\xa0",
    "multipart": b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ntiny-r1\r\n--x--',
    "two documents": BODY + BODY,
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/chat/completions"])
def test_a_body_that_cannot_be_meant_gets_a_400(attacked: Attacked, name: str, path: bytes) -> None:
    attacked.good(True)
    (answer,), closed = said(attacked.address, framed(BAD_BODIES[name], path=path))
    assert answer.status == 400 and not closed
    assert answer.error["type"] == "invalid_request_error"


def test_nothing_is_decompressed(attacked: Attacked) -> None:
    """So no bomb goes off. It is told by the header, also where the body is not compressed and of a known form."""
    attacked.good(True)
    for _ in range(2):
        (plain,), _ = said(attacked.address, framed(extra=b"content-encoding: identity\r\n"))
        assert plain.status == 200
    for coding in (b"gzip", b"br", b"zstd", b"deflate, gzip"):
        for body in (BODY, BAD_BODIES["gzip"]):
            (answer,), _ = said(attacked.address, framed(body, extra=b"content-encoding: " + coding + b"\r\n"))
            assert answer.status == 415
