"""Pieces as runs: one open at a time, text and calls whole however they were cut."""

from __future__ import annotations

from typing import Any

import pytest

from twinline.gateway.dialects.runs import Runs
from twinline.gateway.transcript import Piece


def call(index: int, arguments: str, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


PIECES = [
    Piece(0, [("reasoning", "So")], [1, 2]),
    Piece(0, [], [3]),
    Piece(0, [("reasoning", ".")], [4]),
    Piece(0, [("reasoning", "!"), ("content", "A")], [5]),
    Piece(0, [("content", "B")], [6, 7]),
    Piece(0, [], [], tool_calls=[call(0, "", "f", "one"), call(0, '{"a"')]),
    Piece(0, [], [], tool_calls=[call(0, ":1}"), call(1, "{}", "g")]),
    Piece(0, [], [8], None, None, "stop", "end"),
]


def test_each_kind_is_a_run_and_each_call_its_own() -> None:
    runs = Runs()
    steps = [step for piece in PIECES for step in runs.push(piece)]
    assert [(run.kind, run.place, run.text) for run in runs.runs] == [
        ("reasoning", 0, "So.!"), ("content", 1, "AB"), ("call", 2, '{"a":1}'), ("call", 3, "{}")
    ]  # fmt: skip
    assert [(run.name, run.call_id) for run in runs.runs[2:]] == [("f", "one"), ("g", runs.runs[3].call_id)]
    assert len(runs.runs[3].call_id) > 8 and runs.calls
    assert (runs.finish, runs.stop_reason) == ("stop", "end")
    open_now: list[Any] = []
    for what, run, text in steps:
        if what == "open":
            assert not open_now
            open_now.append(run)
        else:
            assert open_now == [run] and bool(text) == (what == "more")
            if what == "close":
                open_now.clear()
    assert not open_now


def test_the_end_of_a_call_and_the_text_after_it_may_come_together() -> None:
    """As they do where a network read or a step of the engine has several tokens."""
    runs = Runs()
    runs.push(Piece(0, [], [1], tool_calls=[call(0, '{"a": 1', "f", "one")]))
    runs.push(Piece(0, [("content", "Done.")], [2, 3], tool_calls=[call(0, "}")]))
    runs.push(Piece(0, [("content", " And")], [4], tool_calls=[call(1, "{}", "g", "two")]))
    assert [(run.kind, run.name, run.text) for run in runs.runs] == [
        ("call", "f", '{"a": 1}'), ("content", "", "Done. And"), ("call", "g", "{}")
    ]  # fmt: skip


def test_a_call_goes_on_where_every_delta_says_its_id_and_name() -> None:
    runs = Runs()
    for arguments in ('{"a"', ": 1", "}"):
        runs.push(Piece(0, [], [1], tool_calls=[call(0, arguments, "f", "one")]))
    assert [(run.name, run.text) for run in runs.runs] == [("f", '{"a": 1}')]


@pytest.mark.parametrize("between", [[], [("content", "and")]])
def test_calls_that_all_have_one_index_are_told_apart_by_id_or_name(between: list[Any]) -> None:
    for second in (call(0, "{}", None, "two"), call(0, "{}", "g", None), call(0, "{}", "g", "two")):
        runs = Runs()
        runs.push(Piece(0, [], [1], tool_calls=[call(0, '{"a"', "f", "one"), call(0, ": 1}", None, "one")]))
        runs.push(Piece(0, between, [2], tool_calls=[second]))
        assert [run.text for run in runs.runs if run.kind == "call"] == ['{"a": 1}', "{}"]


def test_reasoning_that_is_not_shown_is_no_run() -> None:
    runs = Runs(shows_reasoning=False)
    for piece in PIECES:
        runs.push(piece)
    assert [(run.kind, run.place) for run in runs.runs] == [("content", 0), ("call", 1), ("call", 2)]


def test_an_answer_of_nothing_has_no_run() -> None:
    runs = Runs()
    assert runs.push(Piece(0, [], [3], None, None, "stop", 3)) == [] and not runs.runs
