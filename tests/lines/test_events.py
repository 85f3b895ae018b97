"""The compiled reader of plain events gives what Python gives, wherever the network cuts, and whatever comes."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.lines import client as module
from twinline.lines import events, http
from twinline.lines.client import LineClient
from twinline.lines.protocol import LineError, TokenRequest
from twinline.lines.wire import Delta, merge

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
compiled = pytest.mark.skipif(not events.COMPILED, reason="the extension was not built")


class Heard:
    """What a sink was told, and whether its connection was kept."""

    def __init__(self) -> None:
        self.whole: Delta | None = None
        self.end: str | None = None
        self.kept = False

    def delta(self, delta: Delta) -> None:
        assert self.end is None
        self.whole = delta if self.whole is None else merge(self.whole, delta)

    def finished(self) -> None:
        assert self.end is None
        self.end = "finished"

    def failed(self, error: LineError) -> None:
        assert self.end is None
        self.end = str(error)


class Socket(asyncio.Transport):
    def write(self, data: Any) -> None: ...

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return False


def heard(parts: list[bytes], fast: bool) -> Heard:
    async def main() -> Heard:
        client = LineClient("http://line:1")
        connection = http.Connection(client.pool)
        connection.connection_made(Socket())
        client.pool.keep(connection)
        sink = Heard()
        with mock.patch.object(module, "COMPILED", fast):
            call = client.call(TokenRequest(model="m", prompt=[1], request_id="r"), None, sink)
        for part in parts:
            connection.data_received(part)
        sink.kept = client.pool.idle() is connection
        call.cancel()
        connection.close()
        return sink

    return asyncio.run(main())


def same(parts: list[bytes]) -> Heard:
    fast, slow = heard(parts, True), heard(parts, False)
    assert (fast.whole, fast.end, fast.kept) == (slow.whole, slow.end, slow.kept)
    return fast


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(said: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(said, ensure_ascii=False).encode()


def plain(tokens: list[int], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": 'a "quoted"\n\\ 你', "token_ids": tokens, "logprobs": None, "finish_reason": None}
    return {"id": "cmpl-1", "created": 1, "choices": [choice | more]}


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
WHOLE = [
    event(plain([5, 6], prompt_token_ids=[1, 2, 3])),
    event(plain([7])),
    event(plain([8], finish_reason="stop", stop_reason=8)),
    event({"choices": [], "usage": USAGE}),
    b"data: [DONE]\n\n",
]


def answer(pieces: list[bytes]) -> bytes:
    return HEAD + b"\r\n" + b"".join(map(chunked, pieces)) + b"0\r\n\r\n"


@compiled
def test_a_whole_answer_is_read_in_one_step() -> None:
    read = events.read_answer(answer(WHOLE))
    assert read == ([5, 6, 7, 8], [1, 2, 3], "stop", 8, (3, 4, 2), True, True)
    assert events.delta_of(read) == same([answer(WHOLE)]).whole


@compiled
@pytest.mark.parametrize(
    "said",
    [
        plain([1], logprobs={"tokens": ["token_id:1"], "token_logprobs": [-1.0]}),
        plain([1], stop_reason=1.5),
        plain([1], finish_reason=3),
        plain([2**70]),
        plain([True]),
        {"choices": [plain([1])["choices"][0]] * 2},
        {"error": {"message": "out of memory"}},
        {"choices": None},
        {"usage": {"prompt_tokens": "many"}},
    ],
)
def test_what_is_not_plain_is_pythons_to_read(said: Any) -> None:
    pieces = [*WHOLE[:2], event(said), *WHOLE[2:]]
    assert events.read_answer(answer(pieces)) is None
    assert events.read_chunks(chunked(event(said))) is None
    same([answer(pieces)])


@compiled
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n",
        b"HTTP/1.1 503 no\r\ntransfer-encoding: chunked\r\n",
        HEAD + b"connection: close\r\n",
        HEAD + b"x: a\r\n folded\r\n",
        HEAD + b"transfer-encoding: chunked\r\n",
    ],
)
def test_a_head_that_is_not_plain_is_pythons_to_read(head: bytes) -> None:
    body = answer(WHOLE)[len(HEAD) :]
    assert events.read_answer(head + body) is None
    same([head + body])


DEEP = b'{"a": ' + b"[" * 5000


@pytest.mark.parametrize("fast", [True, False])
def test_what_nests_too_deeply_ends_an_answer(fast: bool) -> None:
    """As JSON of any kind, in a refusal and among many events: the reader has an end to its depth, and says so."""
    refused = heard([b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(DEEP) + DEEP], fast)
    assert refused.end is not None and refused.kept
    many = heard([answer([b"data: {}\n\n" * 40 + b"data: " + DEEP + b"\n\n"])], fast)
    assert many.end is not None and "not the protocol's" in many.end


STRANGE = st.sampled_from(
    [
        b": a comment\n\n",
        b"data: {}\n\n",
        b"data: {\n\n",
        b'data: {"choices":[]} \n\n',
        b'data: {"choices": [{"token_ids": [1, -2 , 3]}]}\n\n',
        b'data: {"choices":[{"token_ids":[01]}]}\n\n',
        b'data: {"choices":[{"token_ids":[1]}],"x":{"deep":[1,{"a":"\\u00e9"}]}}\n\n',
        b'data: {"choices":[{"token_ids":[1],"token_ids":[2]}]}\n\n',
        b'data: {"choices":[{"token_ids":[1]}],"y":[true,false,null,12,"z"]}\n\n',
        b"data: [DONE]\n\n",
        b"data:{}\n\n",
        b"\n\n",
    ]
)
EVENTS = st.lists(st.one_of(st.sampled_from(WHOLE), STRANGE), max_size=6)


@compiled
@settings(max_examples=150, deadline=None)
@given(EVENTS, st.lists(st.integers(0, 3000), max_size=6), st.booleans(), st.data())
def test_both_read_the_same_wherever_it_is_cut(
    more: list[bytes], cuts: list[int], together: bool, data: st.DataObject
) -> None:
    pieces = data.draw(st.permutations(more)) + WHOLE
    raw = answer([b"".join(pieces)] if together else pieces)
    places = [0, *sorted(cut % len(raw) for cut in cuts), len(raw)]
    same([part for start, end in itertools.pairwise(places) if (part := raw[start:end])])


@compiled
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5000), st.binary(max_size=2), st.integers(0, 2))
def test_both_read_the_same_from_damaged_bytes(at: int, put: bytes, dropped: int) -> None:
    raw = answer(WHOLE)
    at %= len(raw)
    damaged = raw[:at] + put + raw[at + dropped :]
    same([damaged])
    ends = [place + 2 for place in range(len(damaged)) if damaged[place : place + 2] == b"\r\n"]
    places = [0, *ends, len(damaged)]
    same([part for start, end in itertools.pairwise(places) if (part := damaged[start:end])])
