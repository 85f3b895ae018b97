"""The judge of the exactness tests finds every mistake that it is there to find."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from tests.gateway.exactness.cases import Case, Expected
from tests.gateway.exactness.client import Reply, verdict
from tests.gateway.exactness.drive import running

Right = tuple[Reply, Case, Expected]


@pytest.fixture(scope="module")
def right(tiny_folder: Path) -> Right:
    """A chat stream of some length that nothing happened to."""

    async def main() -> Right:
        async with running(tiny_folder, 5.0, lines=1) as gateway:
            drawn = (gateway.oracle.draw(1, number, breaks=(), form="chat") for number in range(1, 200))
            case = next(case for case in drawn if case.max_tokens > 100 and case.corpus == "chinese")
            return await gateway.reply(case), case, gateway.oracle.expected(case)

    return uvloop.run(main())


Events = list[bytes]


def first_text(events: Events) -> int:
    return next(
        i for i, event in enumerate(events) if json.loads(event[6:])["choices"][0]["delta"].get("reasoning_content")
    )


def lost(events: Events) -> Events:
    del events[first_text(events) + 1]
    return events


def doubled(events: Events) -> Events:
    at = first_text(events)
    return [*events[: at + 1], *events[at:]]


def changed(old: bytes, new: bytes, times: int = -1) -> Callable[[Events], Events]:
    def change(events: Events) -> Events:
        joined = b"\n\n".join(events)
        assert old in joined
        return joined.replace(old, new, times).split(b"\n\n")

    return change


def another_id(events: Events) -> Events:
    event = json.loads(events[-3][6:])
    events[-3] = b"data: " + json.dumps(event | {"id": "chatcmpl-other"}).encode()
    return events


def second_role(events: Events) -> Events:
    return [events[0], events[0], *events[1:]]


def replaced_character(events: Events) -> Events:
    at = first_text(events)
    event = json.loads(events[at][6:])
    event["choices"][0]["delta"]["reasoning_content"] = "\ufffd" + event["choices"][0]["delta"]["reasoning_content"][1:]
    events[at] = b"data: " + json.dumps(event).encode()
    return events


@pytest.mark.parametrize(
    "mistake",
    [
        lost, doubled, another_id, second_role, replaced_character,
        lambda events: [*events, events[2]],
        lambda events: [*events, b"data: [DONE]"],
        lambda events: events[:-1],
        lambda events: [*events[:-2], events[-1]],
        lambda events: [*events[:-1], events[-2], events[-1]],
        lambda events: [*events[:5], b'data: {"error": {"message": "x"}}', *events[5:]],
        lambda events: [*events[:5], b"event: message", *events[5:]],
        lambda events: [*events[:5], events[5][:-4], *events[6:]],
        changed(b'"completion_tokens":', b'"completion_tokens":1'),
        changed(b'"prompt_tokens":', b'"prompt_tokens":1'),
        changed(b'"finish_reason":"', b'"finish_reason":"un', 1),
        changed(b'"reasoning_content"', b'"content"'),
    ],
)  # fmt: skip
def test_a_mistake_is_found(right: Right, mistake: Callable[[Events], Events]) -> None:
    reply, case, expected = right
    assert verdict(reply, case, expected) == []
    wrong = copy.copy(reply)
    wrong.body = b"\n\n".join(mistake(reply.body.removesuffix(b"\n\n").split(b"\n\n"))) + b"\n\n"
    assert verdict(wrong, case, expected)


def test_a_comment_is_no_mistake(right: Right) -> None:
    reply, case, expected = right
    pinged = copy.copy(reply)
    pinged.body = b": ping\n\n" + reply.body.replace(b"\n\n", b"\n\n: ping\n\n", 3)
    assert verdict(pinged, case, expected) == []


def test_a_cut_is_found_with_and_without_a_clean_end(right: Right) -> None:
    reply, case, expected = right
    for whole in (True, False):
        cut = copy.copy(reply)
        cut.body, cut.whole = reply.body[: len(reply.body) // 2].rpartition(b"\n\n")[0] + b"\n\n", whole
        assert verdict(cut, case, expected)
    unended = copy.copy(reply)
    unended.whole = False
    assert verdict(unended, case, expected)
