"""The grammar of calls that must be made, as xgrammar reads it: what it lets through is read as those calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.gateway.text.calls.test_parser import hermes, llama, read, v3, v31

from twinline.engine.grammars.grammar import BadGrammar, Compiled, Grammar
from twinline.engine.grammars.library import Library, installed
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.gateway.text.calls.forced import structural_tag
from twinline.gateway.text.calls.formats import DEEPSEEK_V3, DEEPSEEK_V31, HERMES, LLAMA3, CallFormat
from twinline.gateway.text.calls.parser import CallParser

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "search"}},
]
ROME = '{"city": "Rom\\"e </tool_call>"}'
FORMATS: list[tuple[CallFormat, Callable[[str, str], str]]] = [
    (DEEPSEEK_V3, v3),
    (DEEPSEEK_V31, v31),
    (HERMES, hermes),
    (LLAMA3, llama),
]


@cache
def library() -> Library:
    return Library(Vocabulary(tuple(bytes([i]) for i in range(256)), frozenset()))


def compiled(format_: CallFormat, tools: list[Any], only_one: bool) -> Compiled:
    text = library().compile(Grammar("structural_tag", structural_tag(format_, tools, only_one)))
    return library().read(text, "structural_tag")


def fits(grammar: Compiled, text: str) -> bool:
    """As a whole answer."""
    matcher = grammar.matcher(frozenset())
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.allow(np.empty(8, dtype=np.int32))


@pytest.mark.parametrize(("format_", "one"), FORMATS)
def test_what_must_be_said(format_: CallFormat, one: Callable[[str, str], str]) -> None:
    written = format_.written
    several, single = (compiled(format_, TOOLS, only_one) for only_one in (False, True))
    rome, found = one("weather", ROME), one("search", '{"a": [1, null]}')
    answer = f"\n\n{written.opens}{rome}{written.closes}"
    both = f"{written.opens}{rome}{written.between}{found}{written.closes}"
    assert fits(several, answer) and fits(single, answer) and fits(several, both) and not fits(single, both)
    assert written.one("weather", ROME) == answer.strip()
    # What fits is read as calls; what no call is, or another's arguments, does not fit.
    assert read(format_, [both]) == ("", [("weather", ROME), ("search", '{"a": [1, null]}')])
    for wrong in (one("nobody", "{}"), one("weather", "{}"), one("weather", '{"city": 1}'), "Rome.", rome + "Rome."):
        assert not fits(several, f"{written.opens}{wrong}{written.closes}")
    assert not fits(several, f"{written.opens}{written.closes}")


def test_one_tool_that_is_named() -> None:
    named = compiled(HERMES, TOOLS[1:], True)
    assert fits(named, hermes("search", "{}")) and not fits(named, hermes("weather", ROME))


def test_a_name_in_another_script() -> None:
    tools = [{"type": "function", "function": {"name": "天气", "parameters": CITY}}]
    assert fits(compiled(DEEPSEEK_V31, tools, True), DEEPSEEK_V31.written.one("天气", ROME))
    parser = CallParser(DEEPSEEK_V31, frozenset({"天气"}))
    assert parser.push(v31("天气", ROME))[1][0]["function"]["name"] == "天气"


def test_a_schema_that_is_none_is_refused_by_whoever_compiles_it() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}]
    with pytest.raises(BadGrammar):
        compiled(HERMES, tools, True)
