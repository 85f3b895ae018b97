"""GLM-4's calls, which no mark begins."""

from __future__ import annotations

import pytest
from tests.gateway.text.calls.test_parser import FUNCTIONS, Calls, glm4, read

from twinline.gateway.text.calls.formats import GLM4
from twinline.gateway.text.calls.parser import CallParser

ONE = glm4("weather", '{"city": "東京"}')


def both(text: str) -> tuple[str, Calls]:
    once = read(GLM4, [text])
    assert once == read(GLM4, list(text))
    return once


@pytest.mark.parametrize("text", [ONE, f"\n{ONE}", ONE.replace("\n", " \n\n"), f"{ONE}<|observation|>", f"{ONE}\n"])
def test_an_answer_that_begins_with_a_name(text: str) -> None:
    assert both(text) == ("", [("weather", '{"city": "東京"}')])


@pytest.mark.parametrize(
    "text",
    [
        "\nweather is fine.",
        "weather",
        "weather {}",
        "weather\n[1]",
        "weather\nis {}",
        "weather" + "\n" * 300 + "{}",
        "nobody\n{}",
        "We see: weather\n{}",
        glm4("nobody", "{}") + "<|assistant|>wea",
        "a <|assistant|>weather is nice",
        "a <|assist",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert both(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ONE}<|observation|> So.", ("So.", 1)),
        (f"{ONE} weather is fine.", ("weather is fine.", 1)),
        (f"{ONE}\n{ONE}<|assistant|>{ONE}<|assistant|>\nSo.", ("<|assistant|>\nSo.", 3)),
        (f"So.<|assistant|>{ONE}", ("So.", 1)),
    ],
)
def test_calls_and_content(text: str, expected: tuple[str, int]) -> None:
    content, calls = both(text)
    assert (content, len(calls)) == expected and set(calls) == {("weather", '{"city": "東京"}')}


def test_a_broken_object_ends_at_a_mark() -> None:
    assert both('weather\n{"city": [<|assistant|>search\n{}') == ("", [("weather", '{"city": ['), ("search", "{}")])
    assert both('weather\n{"city": "<|obs') == ("", [("weather", '{"city": "<|obs')])


def test_a_text_waits_no_longer_than_it_may_be_a_name() -> None:
    parser = CallParser(GLM4, FUNCTIONS)
    assert parser.push("wea") == ("", []) and parser.push("k") == ("weak", []) and parser.push(" we") == (" we", [])
