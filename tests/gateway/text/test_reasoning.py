from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twinline.gateway.text.reasoning import ReasoningParser, around_answer

parts_of_text = st.lists(
    st.sampled_from(["<think>", "</think>", "\n", " ", "a", "<", "</", "think>", "<think", "答", "\n\n"]), max_size=10
).map("".join)
tagged_text = st.lists(
    st.sampled_from(["</think>", "\n", "a", "<response>", "</response>", "\n</response>\n", "<", "</resp", "<resp"]),
    max_size=10,
).map("".join)


def split(parser: ReasoningParser, chunks: list[str]) -> tuple[str, str]:
    found = {"reasoning": "", "content": ""}
    for parts in (*(parser.push(chunk) for chunk in chunks), parser.finish()):
        for kind, text in parts:
            assert text
            found[kind] += text
    return found["reasoning"], found["content"]


def naive(text: str, opened: bool) -> tuple[str, str]:
    """The whole text at once."""
    inner = text.lstrip()
    if inner.startswith("<think>"):
        inner = inner.removeprefix("<think>")
    elif opened:
        inner = text
    else:
        return "", text
    reasoning, closed, content = inner.partition("</think>")
    reasoning = reasoning.removeprefix("\n")
    return (reasoning.removesuffix("\n"), content.lstrip("\n")) if closed else (reasoning, "")


def naive_with_tags(text: str, opened: bool) -> tuple[str, str]:
    reasoning, content = naive(text, opened)
    content = content.lstrip("\n")
    if content.startswith("<response>"):
        inside, closed, behind = content.removeprefix("<response>").lstrip("\n").partition("</response>")
        content = inside.removesuffix("\n") + behind.lstrip("\n") if closed else inside
    return reasoning, content


@given(text=tagged_text, cuts=st.lists(st.integers(0, 99), max_size=8), opened=st.booleans())
@example(text="a\n</think>\n\n<response>\na\n</response>\n", cuts=[3, 20, 30], opened=True)
@example(text="a</think>\n\n<resp", cuts=[], opened=True)
def test_tags_around_the_answer_however_the_text_is_cut(text: str, cuts: list[int], opened: bool) -> None:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert split(ReasoningParser(opened, True), chunks) == naive_with_tags(text, opened)
    assert split(ReasoningParser(opened, True), list(text)) == naive_with_tags(text, opened)


def test_tags_around_the_answer_are_words_unless_the_vocabulary_has_them() -> None:
    output = "hm\n</think>\n\n<response>\n<a>4</a>\n</response>\n"
    assert split(ReasoningParser(True, True), [output]) == ("hm", "<a>4</a>")
    assert split(ReasoningParser(True), [output]) == ("hm", "<response>\n<a>4</a>\n</response>\n")
    called = "hm\n</think>\n\n\n<tool_call>\n{}\n</tool_call>\n"
    assert split(ReasoningParser(True, True), [called]) == ("hm", "<tool_call>\n{}\n</tool_call>\n")


@given(text=parts_of_text, cuts=st.lists(st.integers(0, 99), max_size=8), opened=st.booleans())
@example(text="\n</think>", cuts=[], opened=True)
@example(text="a\n\n</think>\n\n", cuts=[1, 2, 3, 4, 5], opened=True)
def test_however_the_text_is_cut(text: str, cuts: list[int], opened: bool) -> None:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert split(ReasoningParser(opened), chunks) == naive(text, opened)
    assert split(ReasoningParser(opened), list(text)) == naive(text, opened)


@pytest.mark.parametrize(
    ("tail", "output", "expected"),
    [
        ("<think>\n", "two and two\n</think>\n\nIt is 4.", ("two and two", "It is 4.")),
        ("<think>", "\nhm\n</think>\n\n4", ("hm", "4")),
        ("<think>\n", "<think>\nhm</think>4", ("hm", "4")),
        ("<think>\n", "</think>4", ("", "4")),
        ("<think>\n", "cut off </thi", ("cut off </thi", "")),
        ("<think>\n", "", ("", "")),
        ("<｜Assistant｜>", "plain <think> answer", ("", "plain <think> answer")),
        ("<｜Assistant｜>", "\n<think>hm</think>4", ("hm", "4")),
        ("<｜Assistant｜>", "  \n", ("", "  \n")),
        ("<｜Assistant｜></think>", "4", ("", "4")),
        ("<think>\n\n</think>\n\n", "4 < 5", ("", "4 < 5")),
        ("<think>\n", "hm</think>\n\nuse <think>x</think> so", ("hm", "use <think>x</think> so")),
        ("What does <think> mean?<｜Assistant｜>", "A tag.", ("", "A tag.")),
    ],
)
def test_by_the_tail_of_the_prompt(tail: str, output: str, expected: tuple[str, str]) -> None:
    assert split(ReasoningParser.for_prompt("<｜User｜>2+2?" + tail), [output]) == expected


def test_trap_28_reasoning_is_open_where_the_prompt_left_it_open() -> None:
    """R1's template ends in `<think>`: the output has only the end of its reasoning, and a parser that waits for its
    beginning takes all for the answer."""
    output, right = "two and two</think>4", ("two and two", "4")
    assert split(ReasoningParser.for_prompt("<｜User｜>2+2?<｜Assistant｜><think>\n"), [output]) == right
    assert split(ReasoningParser.for_prompt("<｜User｜>2+2?<｜Assistant｜>"), [output]) != right
    assert split(ReasoningParser(opened=False), [output]) == ("", output), "sprung"
    # Where the prompt ends counts, not what is said in it; and an output may have no tag at all (sglang#4539).
    for closed in ("<｜User｜>What is <think>?<｜Assistant｜>", "<｜User｜>2+2?<｜Assistant｜><think>\n\n</think>\n\n"):
        assert split(ReasoningParser.for_prompt(closed), ["4"]) == ("", "4")
    assert split(ReasoningParser.for_prompt("<｜User｜>2+2?<｜Assistant｜>"), [" "]) == ("", " ")


@pytest.mark.parametrize(
    ("message", "output", "expected", "before"),
    [
        ("<think>\nI was", " thinking.\n</think>\n\nSo.", (" thinking.", "So."), ("</think>", "")),
        ("<think>\nI was.\n</think>\n\nSo", " it is.", ("", " it is."), ("", "")),
        ("<think>\nFirst:", "\nthis.\n</think>\n\nSo.", ("\nthis.", "So."), ("</think>", "")),
        ("<think>\n", "\nThis.\n</think>\n\nSo.", ("This.", "So."), ("</think>", "")),
        ("The answer", " is 4.", ("", " is 4."), ("", "")),
        ("Write <think> first", ", then", ("", ", then"), ("", "")),
        ("<think>\nA tag.\n</think>\n\nIt is <think>", " so.", ("", " so."), ("", "")),
    ],
)
def test_a_message_that_goes_on_is_reasoning_if_it_was(
    message: str, output: str, expected: tuple[str, str], before: tuple[str, str]
) -> None:
    prompt = "<｜User｜>What is <think>?<｜Assistant｜>" + message
    assert split(ReasoningParser.for_prompt(prompt, continued=message), [output]) == expected
    assert around_answer(prompt, message) == before


@pytest.mark.parametrize("message", ["So:", "<think>\na\n</think>\n\n<response>\nSo:", "<think>\na\n</think>\n\nSo:"])
def test_a_message_with_answer_tags_that_goes_on_keeps_the_newlines_in_its_midst(message: str) -> None:
    parser = ReasoningParser.for_prompt("<｜User｜>1?<｜Assistant｜>" + message, True, message)
    tail = "\n</response>" if "<response>" in message else ""
    assert split(parser, ["\n\n- one" + tail]) == ("", "\n\n- one")


def test_a_prefix_that_the_template_puts_into_reasoning() -> None:
    """V3.1's does so with a message marked as one, if it thinks."""
    parser = ReasoningParser.for_prompt("<｜User｜>2+2?<｜Assistant｜><think>two and", continued="two and")
    assert split(parser, [" two</think>4"]) == (" two", "4")


def test_what_is_certain_is_sent_at_once() -> None:
    parser = ReasoningParser(opened=True)
    assert parser.push("let me ") == [("reasoning", "let me ")]
    assert parser.push("see\n</th") == [("reasoning", "see")]
    assert parser.push("ere\n</think>") == [("reasoning", "\n</there")]
    assert parser.push("\n\n4") == [("content", "4")]
    assert parser.push(" <") == [("content", " <")]
    assert parser.finish() == []
