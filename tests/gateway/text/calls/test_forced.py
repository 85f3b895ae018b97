"""The grammar of calls that must be made, as xgrammar reads it: what it lets through is read as those calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.gateway.text.calls.test_parser import (
    coder,
    dsml,
    glm4,
    glm45,
    glm47,
    hermes,
    llama,
    read,
    v3,
    v31,
)

from twinline.engine.grammars.grammar import BadGrammar, Compiled, Grammar
from twinline.engine.grammars.library import Library, installed
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.gateway.text.calls.forced import structural_tag
from twinline.gateway.text.calls.format import CallFormat
from twinline.gateway.text.calls.formats import (
    DEEPSEEK_V3,
    DEEPSEEK_V4,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    GLM4,
    GLM45,
    GLM47,
    HERMES,
    LLAMA3,
    QWEN3_CODER,
)
from twinline.gateway.text.calls.parser import CallParser

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["city"],
}
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
    (GLM4, glm4),
    (QWEN3_CODER, coder),
    (GLM45, glm45),
    (GLM47, glm47),
    (DEEPSEEK_V32, dsml),
    (DEEPSEEK_V4, dsml),
]


@cache
def library() -> Library:
    return Library(Vocabulary(tuple(bytes([i]) for i in range(256)), frozenset()))


def compiled(format_: CallFormat, tools: list[Any], only_one: bool, form: object = None) -> Compiled:
    text = library().compile(Grammar("structural_tag", structural_tag(format_, tools, only_one, form)))
    return library().read(text, "structural_tag")


def fits(grammar: Compiled, text: str) -> bool:
    """As a whole answer."""
    matcher = grammar.matcher(frozenset())
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.allow(np.empty(8, dtype=np.int32))


@pytest.mark.parametrize(("format_", "one"), FORMATS)
def test_what_must_be_said(format_: CallFormat, one: Callable[[str, str], str]) -> None:
    written = format_.written
    several, single = (compiled(format_, TOOLS, only_one) for only_one in (False, True))
    rome, found = one("weather", ROME), one("search", '{"a": "b"}')
    answer = f"\n\n{written.opens}{rome}{written.closes}"
    both = f"{written.opens}{rome}{written.between}{found}{written.closes}"
    assert fits(several, answer) and fits(single, answer) and fits(several, both) and not fits(single, both)
    begin, end = written.one("weather", "...").split("...")
    assert answer.strip().startswith(begin) and answer.endswith(end)
    # What fits is read as calls; what no call is, or another's arguments, does not fit.
    assert read(format_, [both]) == ("", [("weather", ROME), ("search", '{"a": "b"}')])
    many = one("weather", '{"city": "a", "n": "many"}')
    for wrong in (one("nobody", "{}"), one("weather", "{}"), many, "Rome.", rome + "Rome."):
        assert not fits(several, f"{written.opens}{wrong}{written.closes}")
    assert not fits(several, f"{written.opens}{written.closes}")


@pytest.mark.parametrize(("format_", "one"), FORMATS)
def test_an_answer_has_its_form_or_is_a_call(format_: CallFormat, one: Callable[[str, str], str]) -> None:
    sky = {"type": "object", "properties": {"sky": {"$ref": "#/$defs/colour"}}, "required": ["sky"]}
    grammar = compiled(format_, TOOLS, False, sky | {"$defs": {"colour": {"enum": ["blue", "grey"]}}})
    written = format_.written
    both = one("weather", ROME) + written.between + one("search", "{}")
    for fit in ('{"sky": "blue"}', '\n\n{"sky": "grey"}', f"\n\n{written.opens}{both}{written.closes}"):
        assert fits(grammar, fit), fit
    called = written.opens + one("search", "{}") + written.closes
    for wrong in ('{"sky": "red"}', "{}", "Rome.", "", called + '{"sky": "blue"}', '{"sky": "blue"}' + called):
        assert not fits(grammar, wrong), wrong


STYLES = [each for each in FORMATS if each[0].written.style != "json"]


@pytest.mark.parametrize(("format_", "one"), STYLES)
def test_values_without_types_are_those_of_the_schema(format_: CallFormat, one: Callable[[str, str], str]) -> None:
    """What the grammar lets through is read back as what it said, by the schema alone or by the mark."""
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "x": {"type": "number"},
            "ok": {"type": "boolean"},
            "code": {"type": "string"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "size": {"enum": ["small", "12", "null"]},
            "short": {"type": "string", "maxLength": 2},
            "point": {"$ref": "#/$defs/point"},
            "list": {"type": "array", "items": {"type": ["string", "integer"]}},
        },
        "$defs": {"point": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    grammar = compiled(format_, tools, True)
    said = (
        '{"n": 12, "x": -1.5, "ok": true, "code": "12", "maybe": null, "size": "12", "point": {"a": "1"}}',
        '{"code": "\\n\\n<a href=\\"b\\">&amp;</a>\\n", "maybe": "東京", "size": "null", "list": ["1", 1]}',
    )
    for arguments in said:
        answer = format_.written.opens + one("f", arguments) + format_.written.closes
        assert fits(grammar, answer), answer
        parser = CallParser(format_, {"f": schema})
        _, deltas = parser.push(answer)
        assert "".join(delta["function"]["arguments"] for delta in deltas) == arguments
    spaced = one("f", '{"size": "12", "point": {}}').replace(">12<", "> 12<").replace("\n12\n", " 12\n")
    may_stand = format_ not in (DEEPSEEK_V32, DEEPSEEK_V4)  # xgrammar lets white space stand around words
    assert fits(grammar, format_.written.opens + spaced + format_.written.closes) is may_stand
    _, deltas = CallParser(format_, {"f": schema}).push(format_.written.opens + spaced)
    assert "".join(delta["function"]["arguments"] for delta in deltas) == '{"size": "12", "point": {}}'
    assert fits(grammar, format_.written.opens + one("f", '{"short": "ab"}') + format_.written.closes)
    for wrong in (
        '{"short": "abc"}',
        '{"short": "   ab   "}',
        '{"n": 1.5}',
        '{"ok": 1}',
        '{"size": "large"}',
        '{"point": {"a": 1}}',
        '{"other": "a"}',
    ):
        assert not fits(grammar, format_.written.opens + one("f", wrong) + format_.written.closes)


def test_one_tool_that_is_named() -> None:
    named = compiled(HERMES, TOOLS[1:], True)
    assert fits(named, hermes("search", "{}")) and not fits(named, hermes("weather", ROME))


def test_a_name_in_another_script() -> None:
    tools = [{"type": "function", "function": {"name": "天气", "parameters": CITY}}]
    assert fits(compiled(DEEPSEEK_V31, tools, True), DEEPSEEK_V31.written.one("天气", ROME))
    parser = CallParser(DEEPSEEK_V31, {"天气": CITY})
    assert parser.push(v31("天气", ROME))[1][0]["function"]["name"] == "天气"


def test_a_schema_that_is_none_is_refused_by_whoever_compiles_it() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}]
    with pytest.raises(BadGrammar):
        compiled(HERMES, tools, True)
