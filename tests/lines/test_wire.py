"""The quick ways of reading events give what the plain ones give."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from twinline.lines.drivers.native import DONE, read_chunk, read_plain
from twinline.lines.protocol import LineBroken
from twinline.lines.wire import Delta, EventLines, merge

LINES = st.sampled_from(
    [b"data: 1", b"data:2", b"data: [DONE]", b"data: [DONE] ", b"data: ", b": ping", b"event: x", b"", b"", b"\r", b"x"]
)
CHOICE = st.fixed_dictionaries(
    {"index": st.just(0)},
    optional={
        "token_ids": st.none() | st.lists(st.integers(0, 9), max_size=3),
        "finish_reason": st.sampled_from([None, "stop", "length"]),
        "stop_reason": st.none() | st.integers(0, 9),
        "prompt_token_ids": st.none() | st.just([1, 2]),
    },
)
USAGE = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9), "completion_tokens": st.integers(0, 9)})
EVENT = st.one_of(
    st.builds(lambda choice: {"choices": [choice]}, CHOICE),
    st.builds(lambda choice: {"choices": [choice]}, CHOICE),
    st.builds(lambda usage: {"choices": [], "usage": usage}, USAGE),
    st.just({"error": {"message": "broke", "code": "x"}}),
)


@given(st.lists(LINES, max_size=12), st.booleans())
def test_a_read_gives_what_its_bytes_give_one_by_one(lines: list[bytes], ended: bool) -> None:
    data = b"\n".join(lines) + (b"\n\n" if ended else b"")
    whole, apart = EventLines(), EventLines()
    single = [payload for byte in data for payload in apart.feed(bytes([byte]))]
    assert whole.feed(data) == single
    assert whole.pending == apart.pending
    assert whole.feed(b"\n") == apart.feed(b"\n")


def one_by_one(payloads: list[bytes]) -> Delta | None:
    merged: Delta | None = None
    for payload in payloads:
        delta = read_chunk(payload)
        merged = delta if merged is None else merge(merged, delta)
    return merged


@given(st.lists(EVENT, min_size=1, max_size=8), st.booleans(), st.integers(0, 40))
def test_many_events_at_once_are_the_same_as_each(events: list[dict[str, Any]], done: bool, broken: int) -> None:
    payloads = [json.dumps(event).encode() for event in events]
    if broken < len(payloads) - 1:  # cut in two at a comma: each half is broken, joined they would be whole
        payloads[broken : broken + 1] = payloads[broken].split(b",", 1)
    if done:
        payloads.append(DONE)
    merged, left = read_plain(payloads)
    if merged is None:
        assert left == payloads
        return
    assert left == ([DONE] if done else [])
    assert not any("error" in event for event in events)
    try:
        expected = one_by_one(payloads[: len(payloads) - len(left)])
    except LineBroken:
        raise AssertionError("read as plain what is an error") from None
    assert merged == expected
