"""Requests of a known form: answered without a task, and not otherwise than with one."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import httpx
import pytest
import uvloop
from tests.gateway.harness import MODEL, SPEC, Gateway, gateway, served
from tests.gateway.several import Several
from tests.gateway.test_access import Store, run
from tests.lines.line_double import LineDouble, Script

from twinline.gateway import endpoint, forms, heads, listening, repeated
from twinline.gateway.access import Access, Visit
from twinline.gateway.app import App
from twinline.gateway.completions import _Whole
from twinline.gateway.door import Door
from twinline.gateway.errors import ApiError
from twinline.gateway.exchange import Exchange
from twinline.gateway.forms import MOST_FORMS, Forms
from twinline.gateway.listening import Server, Stopping, bound, url_of
from twinline.gateway.meters import Meters
from twinline.gateway.served import ModelText
from twinline.lines.line import Line

pytestmark = pytest.mark.skipif(not forms.COMPILED, reason="the extension was not built")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each request that runs without a task; for those whose head was known from before it says `again`. No
    form is known at first."""
    for each in gc.get_objects():
        if isinstance(each, Forms):
            each._known.clear()
    ways: list[str] = []
    true = endpoint.Endpoint.at_once

    def at_once(self: Any, scope: Any, cycle: Any, body: bytes, caller: Any = None) -> Any:
        found = true(self, scope, cycle, body, caller)
        if found is not None:
            ways.append("first" if caller is None else "again")
        return found

    monkeypatch.setattr(endpoint.Endpoint, "at_once", at_once)
    return ways


def same(text: str) -> str:
    """Without what no two answers share."""
    text = re.sub(r'"id":"(cmpl|chatcmpl)-[^"]*"', "", text)
    return re.sub(r'"created":\d+', "", text)


USER = [{"role": "user", "content": "Was ist 7 + 5? 你好 \\ \n"}]
CHATS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 12},
    {"max_completion_tokens": 40, "temperature": 0, "seed": 5, "user": "me"},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stop": ["zz", "é"], "include_stop_str_in_output": True},
    {"logprobs": True, "top_logprobs": 2},
    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be terse."}]}, *USER]},
    {"prompt_logprobs": 1},
    {"reasoning_effort": "none", "skip_special_tokens": False, "min_tokens": 2},
    {"truncate_prompt_tokens": 5},
    {"messages": [{"role": role, "content": role} for role in ("system", "developer")] + USER},
    {"messages": [*USER, {"role": "assistant", "content": "a", "prefix": True, "tool_calls": []}, *USER]},
    {"thinking": {"type": "disabled"}, "enable_thinking": True},
]
COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0.5},
    {"stream": True},
    {"prompt": [9, 9], "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"logprobs": 2, "max_tokens": 20},
    {"stop": "x", "return_token_ids": True},
    {"add_special_tokens": False, "priority": 3, "prompt_logprobs": 0},
]


@pytest.mark.parametrize(("path", "fields"), [("chat", f) for f in CHATS] + [("complete", f) for f in COMPLETIONS])
def test_the_answer_is_the_same_and_so_is_what_the_line_is_asked(
    door: Gateway, taken: list[str], path: str, fields: dict[str, Any]
) -> None:
    door.says("<think>\nyes é\n</think>\n\nzwölf 你好 zz")
    ask = getattr(door, path)
    given = {"messages": USER, **fields} if path == "chat" else {"prompt": "Was ist 7 + 5?", **fields}
    answers, asked = [], []
    for _ in range(3):
        answer = ask(**given)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"]
        answers.append(
            (same(answer.text), {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id")})
        )
        line = {k: v for k, v in door.asked().items() if k not in ("request_id", "prompt_token_ids")}
        if "seed" not in fields:
            del line["seed"]
        asked.append(line)
    assert answers[0] == answers[1] == answers[2]
    assert asked[0] == asked[1] == asked[2]
    assert taken == ["first", "again"], "as this client sends head and body, in two pieces"


def test_another_prompt_gets_its_own_answer(door: Gateway, taken: list[str]) -> None:
    door.complete(prompt=[5, 6, 7], max_tokens=2)
    for prompt in ([8], [9, 10], "Text"):
        door.double.script = lambda request: Script(tokens=list(request["prompt"])[:2])
        answer = door.complete(prompt=prompt, max_tokens=2)
        ids = prompt if isinstance(prompt, list) else door.tokenizer.encode(prompt, special=True)
        assert door.asked()["prompt"] == ids
        assert answer.json()["choices"][0]["text"] == door.tokenizer.decode(ids[:2])
        assert answer.json()["usage"]["prompt_tokens"] == len(ids)
    assert len(taken) == 3


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("complete", {"prompt": []}),
    ("complete", {"prompt": [10**7]}),
    ("complete", {"prompt": [-1]}),
    ("complete", {"prompt": [5] * 300}),
    ("complete", {"prompt": {"a": 1}}),
    ("complete", {"prompt": [1.5]}),
    ("complete", {"prompt": None}),
    ("chat", {"messages": []}),
    ("chat", {"messages": [{"role": "wizard", "content": "x"}]}),
    ("chat", {"messages": [{"role": "user", "content": 7}]}),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ("chat", {"messages": [{"role": "user", "content": "word " * 400}]}),
    ("chat", {"messages": "hello"}),
]


@pytest.mark.parametrize(("path", "fields"), WRONG)
def test_a_prompt_that_is_wrong_is_told_as_ever(
    door: Gateway, taken: list[str], path: str, fields: dict[str, Any]
) -> None:
    ask = getattr(door, path)
    first = ask(**fields, temperature=0.25)  # of a form that is not known
    assert first.status_code == 400
    assert ask(temperature=0.25).status_code == 200
    then = ask(**fields, temperature=0.25)
    assert (then.status_code, then.text) == (400, first.text)
    assert not taken
    assert ask(temperature=0.25).status_code == 200 and len(taken) == 1


class Wire:
    """One connection whose server has read each piece before the next is sent, so that they come apart."""

    def __init__(self, made: Gateway) -> None:
        self.sent = self.answers = b""
        self.read = 0
        self._made, self._context = made, ExitStack()

    def __enter__(self) -> Wire:
        true = heads.Connection.data_received

        def counted(connection: heads.Connection, data: bytes) -> None:
            self.read += len(data)
            true(connection, data)

        self._context.enter_context(mock.patch.object(heads.Connection, "data_received", counted))
        self.socket = self._context.enter_context(self._made.connected())
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def send(self, piece: bytes) -> None:
        self.socket.sendall(piece)
        self.sent += piece

    def taken(self) -> bool:
        return self.read >= len(self.sent)

    def get(self, seconds: float) -> bool:
        """Whether something came within so long. Raises EOFError where the server closed."""
        self.socket.settimeout(seconds)
        try:
            chunk = self.socket.recv(65536)
        except TimeoutError:
            return False
        if not chunk:
            raise EOFError
        self.answers += chunk
        return True

    def answered(self, count: int) -> bytes:
        """What came since, once so many answers are there in all."""
        before, limit = len(self.answers), time.monotonic() + 60
        while finals(self.answers) < count:
            assert time.monotonic() < limit
            self.get(1.0)
        return self.answers[before:]


def finals(answers: bytes) -> int:
    return answers.count(b"HTTP/1.1 ") - answers.count(b"HTTP/1.1 100 ")


def raw(made: Gateway, *parts: bytes) -> bytes:
    """The answers on one connection to what is sent in these pieces. The next is sent once the one before was read and
    whole requests are answered; at the end it is waited for more, which should not come, unless the server closes."""
    limit = time.monotonic() + 60
    with Wire(made) as wire, suppress(EOFError):
        for at, part in enumerate(parts, 1):
            wire.send(part)
            while wire.get(0.15 if at == len(parts) else 0.005) or not (
                wire.taken() and finals(wire.answers) >= requests(wire.sent)
            ):
                assert time.monotonic() < limit
    return wire.answers


def requests(sent: bytes) -> int:
    """How many are whole, or have a head that is none."""
    count = 0
    while (end := sent.find(b"\r\n\r\n") + 4) >= 4:
        head = sent[:end].lower()
        length = re.search(rb"content-length: *(\d+)", head)
        if b"chunked" in head:
            end = sent.index(b"\r\n0\r\n\r\n") + 7
        end += int(length[1]) if length else 0
        if len(sent) < end:
            break
        sent, count = sent[end:], count + 1
    return count


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    said = len(body) if length is None else length
    lines = ["POST /v1/completions HTTP/1.1", "host: x", f"Content-Length: {said}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


BODY = json.dumps({"model": MODEL, "prompt": [5], "max_tokens": 3}).encode()
LONGER = json.dumps({"model": MODEL, "prompt": [5, 6, 7, 8, 9, 10, 11, 12], "max_tokens": 3}).encode()


def test_a_head_that_comes_again_is_known_however_long_the_body(door: Gateway, taken: list[str]) -> None:
    answers = raw(door, post(BODY), post(BODY), post(LONGER), post(BODY), post(BODY))
    assert answers.count(b"HTTP/1.1 200 OK") == 5
    assert taken == ["first", "again", "again", "again"]


def test_another_head_is_read_anew(door: Gateway, taken: list[str]) -> None:
    asked = [post(BODY), post(BODY), post(BODY, "x-request-id: mine"), post(BODY, "x-request-id: yours"), post(BODY)]
    answers = raw(door, *asked)
    assert answers.count(b"HTTP/1.1 200 OK") == 5
    assert answers.index(b"x-request-id: mine") < answers.index(b"x-request-id: yours")
    assert taken == ["first"] * 4
    taken.clear()
    assert raw(door, post(BODY, "x-request-id: a"), post(LONGER, "x-request-id: a")).count(b"x-request-id: a\r\n") == 2
    assert taken == ["first", "again"]


def test_head_and_body_may_come_apart_and_requests_together(door: Gateway, taken: list[str]) -> None:
    raw(door, post(BODY))
    whole = post(BODY)
    head, cut = whole[: -len(BODY)], len(whole) - 10
    answers = raw(door, head, BODY, whole[:20], whole[20:], whole[:cut], whole[cut:], whole + whole + whole, whole)
    assert answers.count(b"HTTP/1.1 200 OK") == 7
    assert taken.count("first") + taken.count("again") == 7


def apart(body: bytes, *headers: str) -> tuple[bytes, bytes]:
    """A request in two pieces, as many clients write it."""
    whole = post(body, *headers)
    return whole[: len(whole) - len(body)], body


def test_a_head_is_known_again_that_comes_before_its_body(door: Gateway, taken: list[str]) -> None:
    raw(door, post(BODY))
    head, body = apart(BODY)
    longer = apart(LONGER)
    answers = raw(door, head, body, head, body, *longer, post(BODY), head, body, head, body[:9], body[9:], *longer)
    assert answers.count(b"HTTP/1.1 200 OK") == 7
    assert taken == ["first", "again", "again", "again", "again", "first", "again"]
    taken.clear()
    other = apart(BODY, "x-request-id: other")
    answers = raw(door, head, body, *other, *other, head, body, other[0], body + post(LONGER))
    assert answers.count(b"HTTP/1.1 200 OK") == 6 and answers.count(b"x-request-id: other\r\n") == 3
    assert taken == ["first", "first", "again", "first", "first", "first"]


def test_the_end_of_a_head_is_no_head(door: Gateway, taken: list[str]) -> None:
    """A head that came in pieces is not remembered by the last of them."""
    raw(door, post(BODY))
    whole = post(BODY)
    cut = whole.index(b"Content")
    for pieces in ((whole[:cut], whole[cut:]), (whole[:cut], whole[cut : -len(BODY)], BODY)):
        taken.clear()
        answers = raw(door, *pieces, whole[cut:])
        assert answers.count(b"HTTP/1.1 200 OK") == 1 and answers.count(b"HTTP/1.1 400 ") == 1
        assert taken == ["first"]


def test_what_follows_a_pipelined_beginning_of_a_head_is_its_end(door: Gateway, taken: list[str]) -> None:
    whole = post(BODY)
    raw(door, whole)
    for cut in (whole.index(b"host"), whole.index(b"Content")):
        for rest in ((whole[cut:],), (whole[cut : -len(BODY)], BODY)):
            answers = raw(door, whole + whole[:cut], *rest, whole[cut:])
            assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"400"]
    assert "again" not in taken


def test_the_pieces_of_a_body_are_no_piece_of_what_follows(door: Gateway, taken: list[str]) -> None:
    """The middle one may be as long as the request that comes with the last."""
    raw(door, post(BODY))
    more = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    whole = post(BODY[:-1] + b" " * 60 + b"}")
    first, second = whole.index(b"{") + 5, whole.index(b"{") + 5 + len(more)
    answers = raw(door, whole, whole[:first], whole[first:second], whole[second:] + more, whole, whole)
    assert [b"completion" in each for each in answers.split(b"HTTP/1.1 200 OK")[1:]] == [True, True, False, True, True]
    assert taken == ["first", "first", "again"]


@pytest.mark.parametrize(("other", "word"), [("POST", b"bob"), ("GET", b"/health")])
def test_nobody_is_taken_for_who_asked_before(door: Gateway, taken: list[str], other: str, word: bytes) -> None:
    """A request of a known form waits behind one that has a task, and begins while another's body is under way."""
    raw(door, post(BODY))
    taken.clear()
    gates = [threading.Event(), threading.Event()]
    waiting = iter(gates)
    begun = len(door.double.requests)
    door.double.script = lambda request: Script(tokens=[10, 11, 12], hold=next(waiting, None))
    unknown = json.dumps({"model": MODEL, "prompt": [5], "max_tokens": 3, "temperature": 0.25}).encode()
    third = post(BODY, "x-request-id: bob", "Expect: 100-continue")
    if other == "GET":
        third = third.replace(b"POST /v1/completions", b"GET /health").replace(b"Expect: 100-continue\r\n", b"")
    with Wire(door) as wire:
        wire.send(post(unknown, "x-request-id: carol") + post(BODY, "x-request-id: alice"))
        door.until(lambda: wire.taken() and len(door.double.requests) == begun + 1)
        wire.send(third[: -len(BODY)])
        door.until(wire.taken)
        gates[0].set()  # carol's answer ends, and alice's begins
        door.until(lambda: len(door.double.requests) == begun + 2)
        wire.send(BODY)
        gates[1].set()
        wire.answered(3)
        wire.send(third)
        fourth = wire.answered(4)
        wire.send(post(BODY, "x-request-id: dora"))
        fifth = wire.answered(5)
    assert taken.count("first") == len(taken) and b"x-request-id: alice" not in fourth + fifth
    assert (word in fourth if other == "POST" else b"completion" not in fourth) and fourth.startswith(b"HTTP/1.1 200 ")
    assert b"x-request-id: dora" in fifth


def connections() -> list[heads.Connection]:
    return [each for each in gc.get_objects() if isinstance(each, heads.Connection)]


def test_no_long_body_is_remembered(door: Gateway, taken: list[str]) -> None:
    raw(door, post(BODY))
    long = post(b"{" + b" " * 300_000)
    with Wire(door) as left:
        left.send(long[:250_000])
        door.until(lambda: left.read > 70_000)
    with Wire(door) as made:
        made.send(long[:250_000])
        door.until(lambda: made.read > 70_000)
        assert all(len(each._repeated.alone) < 70_000 for each in connections())
        made.send(long[250_000:])
        assert made.answered(1).startswith(b"HTTP/1.1 400 ")
        assert not any(each._repeated.alone or each._repeated.held for each in connections())


def test_a_server_that_stops_still_takes_the_body_of_a_known_head(door: Gateway, taken: list[str]) -> None:
    raw(door, post(BODY))
    head, body = apart(BODY)
    with door.connected() as wire:
        wire.sendall(post(BODY))
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 OK")
        wire.sendall(head)
        door.until(lambda: any(each._repeated.held for each in connections()))

        async def stop() -> None:
            for each in connections():
                if each._repeated.held:
                    each.shutdown()

        door.do(stop())
        wire.sendall(body)
        answer = wire.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK") and b"connection: close" in answer


def test_a_known_head_whose_body_does_not_come(
    door: Gateway, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(door, post(BODY))
    head, _ = apart(BODY)
    monkeypatch.setattr(heads, "BODY_SILENCE_SECONDS", 0.4)
    monkeypatch.setattr(heads.Connection, "_look_again", soon)
    with door.connected() as wire:
        wire.sendall(post(BODY))
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 OK")
        wire.sendall(head)
        assert wire.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert not wire.recv(65536)
    raw(door, post(BODY), head)  # and leaves
    assert raw(door, post(BODY)).startswith(b"HTTP/1.1 200 OK")


def soon(connection: heads.Connection, seconds: float) -> None:
    """Looks at an idle connection sooner than its time to live would have it, and finds that it may live on."""
    connection.timeout_keep_alive_task = connection.loop.call_later(
        min(seconds, 0.3), connection.timeout_keep_alive_handler
    )


@pytest.mark.parametrize("size", [15_000, 20_000, 66_000, 99_000, 200_000])
def test_a_body_of_any_size_comes_in_pieces(door: Gateway, taken: list[str], size: int) -> None:
    """What uvicorn does not take unasked is not waited for before somebody asks."""
    raw(door, post(BODY))
    body = BODY[:-1] + b" " * size + b"}"
    whole = post(body)
    half = len(whole) - size // 5
    assert raw(door, whole[: len(whole) - len(body)], whole[len(whole) - len(body) : half], whole[half:]).startswith(
        b"HTTP/1.1 200 OK"
    )


def test_who_asks_is_who_this_head_names(door: Gateway, taken: list[str]) -> None:
    """Whatever pieces a head came in, and whatever came before it."""
    raw(door, post(BODY))
    mine, yours = post(BODY, "x-request-id: mine"), post(BODY, "x-request-id: yours")
    answers = raw(door, mine, mine, yours[: -len(BODY)], BODY, mine, yours[:30], yours[30:], mine, mine)
    assert re.findall(rb"x-request-id: (\w+)", answers) == [
        b"mine",
        b"mine",
        b"yours",
        b"mine",
        b"yours",
        b"mine",
        b"mine",
    ]


def test_bytes_that_only_begin_like_the_head_before_are_read_like_any(door: Gateway, taken: list[str]) -> None:
    whole = post(BODY)
    raw(door, whole)
    taken.clear()
    more = raw(door, whole, post(BODY, length=len(BODY) - 1))  # one byte of it begins the next request, which is none
    assert more.count(b"HTTP/1.1 200 OK") == 1 and more.count(b"HTTP/1.1 400 ") == 1
    assert raw(door, whole, post(BODY, length=0)).count(b"HTTP/1.1 400 ") >= 1
    closing = raw(door, whole, post(BODY, "connection: close"), whole)
    assert closing.count(b"HTTP/1.1 200 OK") == 2
    old = raw(door, whole.replace(b"HTTP/1.1", b"HTTP/1.0"), whole)
    assert old.count(b"HTTP/1.1 200 OK") == 1


def test_a_stream_for_http_1_0_ends_with_its_connection(door: Gateway, taken: list[str]) -> None:
    """Its clients know no chunks: they would take the sizes for text."""
    door.says("</think>yes")
    body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": True}).encode()
    chunked = post(body)
    raw(door, chunked)
    for _ in range(2):  # without a task, too
        head, _, events = raw(door, chunked.replace(b"HTTP/1.1", b"HTTP/1.0")).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head and b"connection: close" in head
        assert events.startswith(b"data: {") and events.endswith(b"data: [DONE]\n\n") and b"\r\n" not in events
    assert taken


def test_a_chunked_body_and_an_expectation_are_not_for_it(door: Gateway, taken: list[str]) -> None:
    raw(door, post(BODY))
    taken.clear()
    chunked = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert raw(door, chunked).startswith(b"HTTP/1.1 200 OK")
    expecting = post(BODY, "expect: 100-continue")
    assert b"HTTP/1.1 200 OK" in raw(door, expecting[: -len(BODY)], BODY)
    assert raw(door, post(BODY, "x-request-timeout-s: 5")).startswith(b"HTTP/1.1 200 OK")
    assert not taken


class Heard:
    """An observer that counts."""

    def __init__(self) -> None:
        self.begun = self.over = 0

    def began(self, exchange: Exchange, visit: Visit) -> None:
        self.begun += 1

    def ended(self, exchange: Exchange, visit: Visit) -> None:
        self.over += 1


@pytest.fixture
def heard(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard = Heard()
    for each in gc.get_objects():
        if isinstance(each, Access):
            monkeypatch.setattr(each, "observers", [heard])
    return heard


def test_observers_hear_of_each_request_twice_and_keep_nothing(door: Gateway, taken: list[str], heard: Heard) -> None:
    def alive() -> int:
        return sum(isinstance(each, Exchange) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    before = alive()
    try:
        for _ in range(3):
            assert door.complete(prompt=[5]).status_code == 200
        assert door.complete(prompt=[]).status_code == 400
        door.until(lambda: heard.begun == heard.over == 4)
        assert len(taken) == 2
        door.until(lambda: alive() <= before + 1)  # a connection may keep its latest
    finally:
        gc.enable()


def test_an_observer_that_fails_fails_no_request(
    door: Gateway, taken: list[str], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heard, "began", lambda *_: 1 / 0)
    for _ in range(3):
        assert door.complete(prompt=[5]).status_code == 200
    assert len(taken) == 2


@pytest.mark.parametrize(("error", "status"), [(ApiError(502, "it left something out"), 502), (KeyError("x"), 500)])
def test_an_end_that_cannot_be_written_is_told(
    door: Gateway, taken: list[str], error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of an answer in which the line left out what was asked for: nobody waits for ever."""

    def fails(*_: object) -> bytes:
        raise error

    for _ in range(2):
        assert door.complete(prompt=[5, 6], max_tokens=4).status_code == 200
        with monkeypatch.context() as patched:
            patched.setattr(_Whole, "end", fails)
            assert door.complete(prompt=[5, 6], max_tokens=4).status_code == status
        door.until(lambda: not door.line.calls)
    assert len(taken) == 3


def test_a_client_that_leaves_before_its_body_or_its_answer(door: Gateway, taken: list[str], heard: Heard) -> None:
    raw(door, post(BODY))
    door.double.script = lambda request: Script(tokens=[10] * 3, delay=600)
    with door.connected() as wire:
        wire.sendall(post(BODY))
        door.until(lambda: door.double.active)
    door.until(lambda: len(door.double.aborted) == 1)
    with door.connected() as wire:
        wire.sendall(post(BODY)[:-3])
        time.sleep(0.05)
    door.until(lambda: not door.line.calls)
    door.until(lambda: heard.begun == heard.over == 3)
    assert raw(door, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_leaves_at_any_moment_leaves_nothing(door: Gateway, taken: list[str], heard: Heard) -> None:
    raw(door, post(BODY))
    door.double.script = lambda request: Script(tokens=[10] * 3, delay=600)
    for at in range(30):
        with door.connected() as wire:
            wire.sendall(post(BODY))
            time.sleep(at / 10_000)
    door.until(lambda: not door.line.calls and not door.double.active)
    door.until(lambda: heard.begun == heard.over == 31)


def test_an_answer_whose_line_breaks_goes_on_or_is_told(door: Gateway, taken: list[str]) -> None:
    door.complete(prompt=[5], max_tokens=6)
    tokens = [10, 11, 12, 13]
    calls = iter([Script(tokens=tokens, fault="end", fault_after=2)])
    door.double.script = lambda request: next(calls, Script(tokens=tokens))
    answer = door.complete(prompt=[6], max_tokens=6).json()
    assert door.asked()["output_prefix_ids"] == tokens[:2]
    assert answer["choices"][0]["text"] == door.tokenizer.decode(tokens)
    assert answer["usage"]["completion_tokens"] == 4
    door.double.script = lambda request: Script(tokens=list(range(10, 30)), fault="in_band", fault_after=1)
    assert door.complete(prompt=[7], max_tokens=6).status_code == 502
    assert len(taken) == 2


def test_what_the_end_of_the_server_cuts_off_is_told(
    tiny_folder: Path, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and streamed, booked once, and none of it is waited for longer than for requests with tasks."""
    monkeypatch.setattr(listening, "DRAIN_SECONDS", 0.3)

    async def main() -> None:
        double, meters = LineDouble(), Meters()
        line = Line("double", SPEC, await double.start())
        await line.verify()
        model = served(MODEL, ModelText.load(tiny_folder), [line], meters)
        stopping = Stopping()
        with bound("127.0.0.1", 0) as listener:
            server = Server(App(Door([model], meters=meters)), lambda: None)
            serving = asyncio.create_task(stopping.serve(server, listener))
            async with httpx.AsyncClient(base_url=url_of(listener), timeout=10, trust_env=False) as client:

                def ask(**fields: Any) -> asyncio.Task[httpx.Response]:
                    body = {"model": MODEL, "prompt": "Hi", **fields}
                    return asyncio.create_task(client.post("/v1/completions", json=body))

                for fields in ({}, {"stream": True}):
                    assert (await ask(**fields)).status_code == 200
                double.script = lambda request: Script(fault="hang", fault_after=1)
                asked = [ask(), ask(stream=True)]
                while len(line.calls) < 2 or not all(call.tokens for call in line.calls):
                    await asyncio.sleep(0.01)
                assert len(taken) == 2
                stopping.ask()
                whole, streamed = await asyncio.gather(*asked)
            await serving
        assert (whole.status_code, streamed.status_code) == (503, 200)
        assert "server_stopping" in whole.text and "server_stopping" in streamed.text
        assert not streamed.text.endswith("[DONE]\n\n")
        assert meters.refusals.labels(MODEL, "server_stopping").value == 2
        assert meters.requests.labels("completions", "503").value == 2
        assert meters.running.labels("completions").value == 0 and not line.calls
        await double.stop()

    uvloop.run(main())


def test_a_model_that_is_another_now_has_no_forms(tiny_folder: Path, taken: list[str]) -> None:
    with gateway(tiny_folder) as made:
        for _ in range(2):
            assert made.complete(prompt=[5]).status_code == 200
        assert len(taken) == 1
        door = next(iter(made.supply.lines.values()))
        assert door is made.line

        async def retire() -> None:
            made.supply.remove(made.line.name)

        made.do(retire())
        assert made.complete(prompt=[5]).status_code == 503
        assert len(taken) == 2, "it was tried at once, and refused as ever"
        (opened,) = (each for each in gc.get_objects() if isinstance(each, Door) and made.supply in _supplies(each))
        known = [each for each in gc.get_objects() if isinstance(each, Forms) and each._known]

        async def shut() -> None:
            opened.shut(MODEL)

        made.do(shut())
        assert not any(each._known for each in known)
        assert made.complete(prompt=[5]).status_code == 404


def _supplies(door: Door) -> list[Any]:
    return [served.supply for served in door.models]


def test_the_key_is_looked_at_for_every_request(tiny_folder: Path, tmp_path: Path, taken: list[str]) -> None:
    async def test(made: Several, store: Store) -> None:
        made.says("words")
        alice, bob = store.key("alice"), store.key("bob", models=("other",))
        for _ in range(3):
            assert (await made.complete(alice)).status_code == 200
        assert len(taken) == 2
        assert (await made.complete(bob)).status_code == 403
        assert (await made.complete(None)).status_code == 401
        assert (await made.complete(alice)).status_code == 200
        store.keys.revoke("alice")
        store.ring.refresh()
        assert (await made.complete(alice)).status_code == 401
        carol = store.key("carol", requests_per_minute=2)
        codes = [(await made.complete(carol)).status_code for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        used = {key: row.requests for key, row in store.used("key").items()}
        assert used[("alice",)] == 4 and used[("carol",)] == 2

    run(tiny_folder, tmp_path, test)


def test_forms_are_few_and_of_short_bodies() -> None:
    known = Forms("prompt")
    form: Any = object()

    def body(n: int) -> bytes:
        return json.dumps({"n": n, "prompt": "x"}).encode()

    for n in range(MOST_FORMS + 10):
        known.keep(body(n), form)
    assert known.find(body(0)) is None and known.find(body(9)) is None
    assert known.find(body(10)) == (form, b'"x"') and known.find(body(MOST_FORMS + 9)) is not None
    assert known.find(body(11)) is not None
    for n in range(MOST_FORMS + 10, 2 * MOST_FORMS + 9):
        known.keep(body(n), form)
    known.keep(body(2 * MOST_FORMS), form)  # it is there: nothing is pushed out
    assert known.find(body(11)) is not None and known.find(body(12)) is None
    known.keep(json.dumps({"long": "y" * 5000, "prompt": 1}).encode(), form)
    assert known.find(json.dumps({"long": "y" * 5000, "prompt": 1}).encode()) is None


def values(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return random.choice([None, True, False, 0, -1.5e3, 10**12])
    if kind < 5:
        return "".join(random.choice('ab"\\{}[]:,\n é\u20ac') for _ in range(random.randrange(6)))
    if kind == 5:
        return [values(random, depth + 1) for _ in range(random.randrange(4))]
    return {str(values(random, 9)): values(random, depth + 1) for _ in range(random.randrange(4))}


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    random = Random(5)
    made = []
    for _ in range(3000):
        fields = [
            (random.choice(["prompt", "a", "b", 'x"y', "pr\\ompt"]), values(random)) for _ in range(random.randrange(5))
        ]
        pairs = [json.dumps(n, ensure_ascii=random.random() < 0.5) + ": " + json.dumps(v) for n, v in fields]
        made.append((" { " + ", ".join(pairs) + "}\n").encode())
    return made


def test_a_body_is_parted_as_json_reads_it(bodies: list[bytes]) -> None:
    parted = 0
    for body in bodies:
        parts = forms.split(body, b"prompt")
        pairs = json.loads(body, object_pairs_hook=lambda found: found)
        names = [name for name, _ in pairs] if isinstance(pairs, list) else []
        if parts is None:
            assert names.count("prompt") != 1 or any("\\" in n or '"' in n for n in names)
            continue
        parted += 1
        assert json.loads(parts[1]) == json.loads(body)["prompt"]
        assert len(parts[0]) + len(parts[1]) == len(body)
    assert parted > 250


def test_what_is_no_json_is_parted_no_way_that_json_reads(bodies: list[bytes]) -> None:
    random = Random(6)
    for body in bodies:
        broken = bytearray(body)
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(broken))
            broken[at : at + random.randrange(2)] = random.choice(
                [b"", b'"', b",", b"}", b"]", b"\\", b"prompt", b"\x00"]
            )
        parts = forms.split(bytes(broken), b"prompt")
        try:
            whole = json.loads(broken)
        except ValueError:
            continue  # whether it is parted or not: its rest is of no request that was answered
        if parts is not None:
            assert json.loads(parts[1]) == whole["prompt"]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"POST / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}x",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\ncontent-length: 02\r\n\r\n{}", b"POST / HTTP/1.1\r\nx: 1\r\n\r\ncontent-length: 9\r\n",
    ],
)  # fmt: skip
def test_heads_that_cannot_be_known_again(data: bytes) -> None:
    assert repeated.head_of(data) is None


def test_the_body_after_a_known_head() -> None:
    head = repeated.head_of(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nx: y\r\n\r\n{}")
    assert head == (b"POST / HTTP/1.1\r\nContent-Length: ", b"\r\nx: y\r\n\r\n")

    def after(length: bytes, body: bytes, end: bytes = head[1]) -> bytes | int | None:
        return repeated.body_after(head[0] + length + end + body, *head)

    assert after(b"2", b"{}") == b"{}" and after(b"12", b"x" * 12) == b"x" * 12
    for length, body in (
        (b"3", b"{}"),
        (b"1", b"{}"),
        (b"02", b"{}"),
        (b"0", b""),
        (b"", b"{}"),
        (b"-2", b"{}"),
        (b"2 ", b"{}"),
    ):
        assert after(length, body) is None
    assert after(b"2", b"") == 2 and after(b"12", b"") == 12  # it is to come
    assert after(b"2", b"", head[1][:-1]) is None and after(b"2", b"", b"\r\nx: z\r\n\r\n") is None
    assert after(b"2", b"{}", b"\r\nx: z\r\n\r\n") is None
    assert after(b"9999999", b"{}") is None
    assert repeated.body_after(head[0], *head) is None
