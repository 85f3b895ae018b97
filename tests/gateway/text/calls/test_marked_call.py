"""Calls whose arguments stand one by one between marks: what models leave out, what stands inside, what breaks off."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.gateway.text.calls.test_parser import (
    FUNCTIONS,
    SECTION,
    SECTION_END,
    Calls,
    coder,
    dsml,
    glm45,
    glm47,
    hermes,
    read,
)

from twinline.gateway.text.calls.format import CallFormat
from twinline.gateway.text.calls.formats import DEEPSEEK_V32, GLM45, GLM47, QWEN3_CODER
from twinline.gateway.text.calls.parser import CallParser

ROME = '{"city": "Rome", "n": 3}'


def both(format_: CallFormat, text: str) -> tuple[str, Calls]:
    once = read(format_, [text])
    assert once == read(format_, list(text))
    return once


def arguments(format_: CallFormat, text: str) -> str:
    """Of the only call, which has ended."""
    content, ((name, found),) = both(format_, text)
    assert name in FUNCTIONS and content == ""
    json.loads(found)
    return found


def in_coder(*written: str, name: str = "weather") -> str:
    """A call with these parameters, each `key>value` as it stands between the marks."""
    parameters = "".join(f"<parameter={each}</parameter>" for each in written)
    return arguments(QWEN3_CODER, f"<tool_call><function={name}>{parameters}</function></tool_call>")


@pytest.mark.parametrize(
    "text",
    [
        coder("weather", ROME).removeprefix("<tool_call>\n"),
        coder("weather", ROME).removesuffix("</tool_call>"),
        coder("weather", ROME).replace("</function>\n", ""),
        coder("weather", ROME).replace("\n", ""),
        coder("weather", ROME).replace("\n</parameter>\n<parameter=n", "\n<parameter=n"),
        coder("weather", ROME).replace("</parameter>\n</function>", "</function>"),
    ],
)
def test_what_qwen3_coder_leaves_out(text: str) -> None:
    assert arguments(QWEN3_CODER, text) == ROME


def test_marks_inside_a_text() -> None:
    """The first behind which the call goes on ends the value; another parameter's head does where it can be one."""
    inside = "</parameter>, <parameter=city>, </function> and\n<parameter=a>\n<parameter=city></tool_call>"
    assert json.loads(in_coder(f"city>\n{inside}\n"))["city"] == inside
    inside = "</arg_value>, <arg_key>n</arg_key><arg_value>1</arg_value>, </tool_call> <tool_call>"
    assert json.loads(arguments(GLM45, glm45("weather", json.dumps({"city": inside}))))["city"] == inside
    assert json.loads(arguments(GLM47, glm47("weather", json.dumps({"city": inside}))))["city"] == inside
    inside = "</｜DSML｜parameter>, </｜DSML｜invoke>"
    assert json.loads(arguments(DEEPSEEK_V32, dsml("weather", json.dumps({"city": inside}))))["city"] == inside


def test_a_value_ends_where_white_space_never_does() -> None:
    text = "<function=weather><parameter=city>Rome</parameter>" + " " * 300 + "So."
    assert both(QWEN3_CODER, text) == ("So.", [("weather", '{"city": "Rome"}')])


def test_types_are_the_schemas() -> None:
    assert in_coder("n>1", "city>1", "s>1", "days>[1]") == '{"n": 1, "city": "1", "s": "1", "days": [1]}'
    assert in_coder("s>\nNone\n", "n>None") == '{"s": null, "n": null}'
    assert in_coder("city>null", "s>nullable") == '{"city": "null", "s": "nullable"}'
    assert in_coder("n>\n3 days\n", "days>{no}") == '{"n": "3 days", "days": "{no}"}'
    # Where the schema says nothing: Qwen3-Coder's are texts, GLM's are JSON if they can be.
    assert in_coder("a>1", name="search") == '{"a": "1"}'
    values = {"a": "1", " b ": "{'c': [True, \"d'\"]}", "e": " f "}
    text = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in values.items())
    found = arguments(GLM45, f"<tool_call>search\n{text}</tool_call>")
    assert found == '{"a": 1, "b": {"c": [true, "d\'"]}, "e": " f "}'


def test_deepseeks_mark_tells_the_type() -> None:
    values = (("a", "true", "1"), ("b", "false", "1"), ("c", "false", "one"), ("d", "true", "null"))
    text = "".join(
        f'<｜DSML｜parameter name="{key}" string="{is_text}">{value}</｜DSML｜parameter>'
        for key, is_text, value in values
    )
    found = arguments(DEEPSEEK_V32, f'<｜DSML｜invoke name="search">{text}</｜DSML｜invoke>')
    assert found == '{"a": "1", "b": 1, "c": "one", "d": "null"}'


def test_one_line_break_on_each_side_is_not_the_values() -> None:
    assert in_coder("city>\n\n a \n\n", "s>\n") == '{"city": "\\n a \\n", "s": ""}'
    text = "<tool_call>weather<arg_key>city</arg_key><arg_value>\na\n</arg_value></tool_call>"
    assert arguments(GLM45, text) == '{"city": "\\na\\n"}'


texts = st.text(max_size=8) | st.lists(
    st.sampled_from(["<", "</", "<parameter=city>", "</function>", "<tool_call>", "<arg_key>", "</tool_call>", "\n",
                     " ", "a", "東", '"', "\\", "}", "12", "True", "<｜DSML｜invoke", "</｜DSML｜", "null", "1e5",
                     "</p"]),
    max_size=6,
).map("".join)  # fmt: skip
inner = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(texts, some, max_size=2),
    max_leaves=5,
)
said = st.fixed_dictionaries(
    {},
    optional={
        "city": texts,
        "s": st.none() | texts.filter(lambda text: text.strip() not in ("null", "None")),
        "n": st.integers(),
        "days": st.lists(inner, max_size=3),
    },
)


ENDS = re.compile(r"</parameter>|\n<parameter=|</function>\s*</tool_call>|</arg_value>|</｜DSML｜parameter>")


@pytest.mark.parametrize(
    ("format_", "one"), [(QWEN3_CODER, coder), (GLM45, glm45), (GLM47, glm47), (DEEPSEEK_V32, dsml)]
)
@given(arguments=said)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_what_a_template_writes_is_read_as_that(
    format_: CallFormat, one: Callable[[str, str], str], arguments: dict[str, Any]
) -> None:
    """Whatever the texts hold but the mark that ends them all."""
    assume(not any(ENDS.search(str(value)) for value in arguments.values()))
    content, ((name, found),) = read(format_, list(one("weather", json.dumps(arguments))))
    assert (content, name, json.loads(found)) == ("", "weather", arguments)


def test_a_parameter_that_comes_twice_is_written_twice() -> None:
    assert in_coder("n>1", "n>2") == '{"n": 1, "n": 2}'


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        (QWEN3_CODER, f"a {coder('nobody', '{}')} b"),
        (QWEN3_CODER, f"a {hermes('weather', '{}')} b"),
        (QWEN3_CODER, "a <function=weather> b"),
        (QWEN3_CODER, "a <tool_call>\n<function=weather>\n"),
        (QWEN3_CODER, "a <tool_call>\n<function=weather>" + " " * 300 + "</function>"),
        (QWEN3_CODER, "a </function> </tool_call> <function"),
        (GLM45, f"a {glm45('nobody', '{}')} b"),
        (GLM45, f"a {hermes('weather', '{}')} b"),
        (GLM45, "a <tool_call>weather now</tool_call>"),
        (GLM45, "a <tool_call>weather\n"),
        (DEEPSEEK_V32, f"a {SECTION}\n{dsml('nobody', '{}')}\n{SECTION_END}"),
        (DEEPSEEK_V32, f"a {SECTION}\n"),
        (DEEPSEEK_V32, 'a <｜DSML｜invoke name="weather'),
    ],
)
def test_what_is_no_call_is_content(format_: CallFormat, text: str) -> None:
    assert both(format_, text) == (text, [])


LONG = "x" * 300


@pytest.mark.parametrize(
    ("format_", "text", "content", "found"),
    [
        (QWEN3_CODER, f"{coder('weather', '{}')}\n\nSo. \n", "So. \n", "{}"),
        (QWEN3_CODER, f"<tool_call>\n{coder('weather', '{}')}", "<tool_call>", "{}"),
        (QWEN3_CODER, f"{coder('nobody', '{}')}\n{coder('weather', '{}')}", coder("nobody", "{}"), "{}"),
        (GLM45, f"{glm45('weather', '{}')}\n\nSo. \n", "So. \n", "{}"),
        (DEEPSEEK_V32, f"{SECTION}\n{dsml('weather', '{}')}\n{SECTION_END}\nSo.", "So.", "{}"),
        # Text that is no argument ends the call.
        (
            QWEN3_CODER,
            f"<function=weather><parameter=n>1</parameter><parameter={LONG}",
            f"<parameter={LONG}",
            '{"n": 1}',
        ),
        (GLM45, f"<tool_call>weather<arg_key>n</arg_value>{LONG}", f"<arg_key>n</arg_value>{LONG}", "{}"),
        # Cut off inside a text, a number, a mark and between two arguments.
        (QWEN3_CODER, "<function=weather><parameter=city>\nRo", "", '{"city": "Ro'),
        (QWEN3_CODER, "<function=weather><parameter=n>\n1", "", '{"n": 1'),
        (QWEN3_CODER, "<function=weather><parameter=city>Ro\n</par", "", '{"city": "Ro\\n</par'),
        (QWEN3_CODER, "<function=weather><parameter=city>Ro\n</parameter>\n", "", '{"city": "Ro"'),
        (QWEN3_CODER, "<function=weather><parameter=days>[True]</parameter>\n", "", '{"days": [true]'),
        (QWEN3_CODER, "<function=weather><parameter=city>Ro</parameter>\n<parameter=n", "", '{"city": "Ro"'),
        (GLM45, "<tool_call>weather<arg_key>city</arg_key><arg_value>Ro", "", '{"city": "Ro'),
    ],
)
def test_malformed_calls(format_: CallFormat, text: str, content: str, found: str) -> None:
    assert both(format_, text) == (content, [("weather", found)])


def test_a_text_goes_out_as_it_comes_and_any_other_value_when_it_is_whole() -> None:
    parser = CallParser(QWEN3_CODER, FUNCTIONS)

    def given(text: str) -> str:
        content, deltas = parser.push(text)
        assert not content
        return "".join(delta["function"]["arguments"] for delta in deltas)

    assert given("<tool_call>\n<function=weather>\n<parameter=city>") == '{"city": "'
    assert given("\nThe ") == "The " and given("city\n of </parameter") == "city\\n of "
    assert given("s> Ro\n") == "</parameters> Ro" and given("me\n</parameter>") == "\\nme"
    assert given("\n<parameter=days>\n[1, ") == '", "days": ' and given("2]\n</parameter>") == ""
    assert given("\n<parameter=s>nul") == '[1, 2], "s": ' and given("lified") == '"nullified'
    assert given("</parameter></function>") == '"}' and parser.called
