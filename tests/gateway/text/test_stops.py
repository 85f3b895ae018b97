from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinline.gateway.text.stops import StopMatcher

few_letters = st.text("abc", max_size=24)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Looks after every character, as an engine that sees one at a time."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def chunks(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(text=few_letters, stops=stop_lists, cuts=st.lists(st.integers(0, 99), max_size=8), include=st.booleans())
def test_as_the_naive_search_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include)
    sent, matched = "", None
    for chunk in chunks(text, cuts):
        ready, matched = matcher.push(chunk)
        sent += ready
    assert (sent + matcher.finish(), matched) == naive(text, stops, include)


@given(text=few_letters, stops=stop_lists)
def test_no_more_is_held_back_than_could_become_a_stop(text: str, stops: list[str]) -> None:
    sent, matched = StopMatcher(stops).push(text)
    if matched is None:
        ends = [text[i:] for i in range(len(text) + 1)]
        held = next(end for end in ends if end == "" or any(s.startswith(end) and s != end for s in stops))
        assert sent + held == text


def test_text_after_a_match_is_dropped() -> None:
    matcher = StopMatcher(["\n\n", "END"])
    assert matcher.push("one E") == ("one ", None)
    assert matcher.push("NDtwo") == ("", "END")
    assert matcher.push("three") == ("", "END")
    assert matcher.finish() == ""


def test_a_stop_that_did_not_come_is_sent_at_the_end() -> None:
    matcher = StopMatcher(["停止"])
    assert matcher.push("请停") == ("请", None)
    assert matcher.finish() == "停"


def test_the_first_complete_stop_wins() -> None:
    assert StopMatcher(["abcd", "bc"]).push("abcd") == ("a", "bc")
    assert StopMatcher(["bc", "abc"], include=True).push("xabcx") == ("xabc", "abc")


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopMatcher(["a", ""])
