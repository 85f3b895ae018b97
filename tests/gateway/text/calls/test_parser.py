from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twinline.gateway.chat import whole_calls
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

# The types that count are those of `weather`; of `search` nothing is said.
FUNCTIONS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "array"},
            "s": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "n": {"type": "integer"},
        },
    },
    "search": {},
}
BEGINS, ENDS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"

V4_SECTION, V4_SECTION_END = "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"
SECTION, SECTION_END = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"

Calls = list[tuple[str, str]]


def v3(name: str, arguments: str) -> str:
    return f"{BEGIN}function{SEP}{name}\n```json\n{arguments}\n```{END}"


def v31(name: str, arguments: str) -> str:
    return f"{BEGIN}{name}{SEP}{arguments}{END}"


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def llama(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def texts(arguments: str) -> Iterator[tuple[str, bool, str]]:
    """Each argument as a template writes it: its name, whether it is a text, and its own text."""
    for key, value in json.loads(arguments).items():
        is_text = isinstance(value, str)
        yield key, is_text, value if is_text else json.dumps(value, ensure_ascii=False)


def coder(name: str, arguments: str) -> str:
    written = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, _, text in texts(arguments))
    return f"<tool_call>\n<function={name}>\n{written}</function>\n</tool_call>"


def glm45(name: str, arguments: str, line: str = "\n") -> str:
    written = "".join(
        f"<arg_key>{key}</arg_key>{line}<arg_value>{text}</arg_value>{line}" for key, _, text in texts(arguments)
    )
    return f"<tool_call>{name}{line}{written}</tool_call>"


def glm47(name: str, arguments: str) -> str:
    return glm45(name, arguments, "")


def glm4(name: str, arguments: str) -> str:
    return f"{name}\n{arguments}"


def dsml(name: str, arguments: str) -> str:
    written = "".join(
        f'<｜DSML｜parameter name="{key}" string="{str(is_text).lower()}">{text}</｜DSML｜parameter>\n'
        for key, is_text, text in texts(arguments)
    )
    return f'<｜DSML｜invoke name="{name}">\n{written}</｜DSML｜invoke>'


def read(format_: CallFormat, chunks: list[str], only_one: bool = False) -> tuple[str, Calls]:
    """Content and calls; that each delta is as OpenAI's are is checked on the way."""
    parser = CallParser(format_, FUNCTIONS, only_one)
    content, deltas = "", []
    for chunk in chunks:
        said, found = parser.push(chunk)
        content, deltas = content + said, deltas + found
        if parser.full:
            break
    said, found = parser.finish()
    checked(deltas + found)
    calls = whole_calls(deltas + found)
    return content + said, [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def checked(deltas: list[dict[str, Any]]) -> None:
    """Calls come one after the other; id, type and name first and once, then arguments, never empty ones."""
    opened = -1
    ids = set()
    for delta in deltas:
        if "id" in delta:
            opened += 1
            ids.add(delta["id"])
            assert delta["type"] == "function" and delta["function"]["arguments"] == "" and delta["function"]["name"]
        else:
            assert set(delta) == {"index", "function"} and set(delta["function"]) == {"arguments"}
            assert delta["function"]["arguments"]
        assert delta["index"] == opened
    assert len(ids) == opened + 1


TOKYO = '{"city": "東京", "days": [1, {"a": "}"}], "s": "q\\"]{"}'
FORMATS: dict[str, tuple[CallFormat, list[tuple[str, str, Calls]]]] = {
    "v3": (
        DEEPSEEK_V3,
        [
            ("one", f"Let me see.\n\n{BEGINS}{v3('weather', TOKYO)}{ENDS}", [("weather", TOKYO)]),
            ("two", f"Let me see.{BEGINS}{v3('weather', '{}')}\n{v3('search', TOKYO)}{ENDS}",
             [("weather", "{}"), ("search", TOKYO)]),
            ("no section", f"Let me see. {v3('weather', TOKYO)}", [("weather", TOKYO)]),
            ("no fence", f"Let me see.{BEGINS}{BEGIN}function{SEP}search\n{TOKYO}{END}{ENDS}", [("search", TOKYO)]),
        ],
    ),
    "v31": (
        DEEPSEEK_V31,
        [
            ("one", f"Let me see.{BEGINS}{v31('weather', TOKYO)}{ENDS}", [("weather", TOKYO)]),
            ("two", f"Let me see.{BEGINS}{v31('weather', TOKYO)}{v31('weather', '{}')}{ENDS}",
             [("weather", TOKYO), ("weather", "{}")]),
            ("fenced", f"Let me see.{BEGINS}{BEGIN}weather{SEP}```json\n{TOKYO}\n```{END}", [("weather", TOKYO)]),
        ],
    ),
    "hermes": (
        HERMES,
        [
            ("one", f"Let me see.\n{hermes('weather', TOKYO)}", [("weather", TOKYO)]),
            ("two", f"Let me see.\n\n{hermes('weather', TOKYO)}\n{hermes('search', '{}')}\n",
             [("weather", TOKYO), ("search", "{}")]),
            ("arguments first",
             f'Let me see.<tool_call>{{"arguments": {TOKYO}, "name": "search"}}</tool_call>', [("search", TOKYO)]),
            ("two in one tag",
             'Let me see.<tool_call>{"name": "search", "arguments": {}}\n{"name": "weather"}</tool_call>',
             [("search", "{}"), ("weather", "{}")]),
            ("arguments in a string",
             'Let me see.<tool_call>{"name": "search", "arguments": "{\\"q\\": \\"a\\"}"}</tool_call>',
             [("search", '{"q": "a"}')]),
            ("no arguments",
             'Let me see.<tool_call>{"name":"search","arguments":null}</tool_call>', [("search", "{}")]),
            ("a brace too many", f"Let me see.{hermes('search', '{}').replace('}}', '}}}')}", [("search", "{}")]),
            ("a brace too few", 'Let me see.<tool_call>{"name": "search", "arguments": {}\n</tool_call>',
             [("search", "{}")]),
        ],
    ),
    "llama": (
        LLAMA3,
        [
            ("tagged", f"Let me see.<|python_tag|>{llama('weather', TOKYO)}", [("weather", TOKYO)]),
            ("two", f"Let me see.<|python_tag|>{llama('weather', TOKYO)}; {llama('search', '{}')}",
             [("weather", TOKYO), ("search", "{}")]),
            ("typed", 'Let me see.<|python_tag|>{"type": "function", "name": "search", "parameters": {}}',
             [("search", "{}")]),
        ],
    ),
    "glm4": (
        GLM4,
        [
            ("one", f"Let me see.<|assistant|>{glm4('weather', TOKYO)}", [("weather", TOKYO)]),
            ("two", f"Let me see.<|assistant|>{glm4('weather', TOKYO)}<|assistant|>{glm4('search', '{}')}",
             [("weather", TOKYO), ("search", "{}")]),
            ("two without a mark", f"Let me see.<|assistant|>{glm4('search', '{}')}\n{glm4('weather', TOKYO)}",
             [("search", "{}"), ("weather", TOKYO)]),
            ("spaces", 'Let me see.<|assistant|>search \n\n{"a": 1} <|observation|>', [("search", '{"a": 1}')]),
        ],
    ),
    "qwen3_coder": (
        QWEN3_CODER,
        [
            ("one", f"Let me see.\n\n{coder('weather', TOKYO)}", [("weather", TOKYO)]),
            ("two", f"Let me see.\n{coder('weather', TOKYO)}\n{coder('search', '{}')}",
             [("weather", TOKYO), ("search", "{}")]),
        ],
    ),
    "glm45": (
        GLM45,
        [
            ("one", f"Let me see.\n{glm45('weather', TOKYO)}", [("weather", TOKYO)]),
            ("two", f"Let me see.\n{glm45('weather', TOKYO)}\n{glm45('search', '{}')}",
             [("weather", TOKYO), ("search", "{}")]),
            ("without line breaks", f"Let me see.{glm47('weather', TOKYO)}", [("weather", TOKYO)]),
        ],
    ),
    "glm47": (
        GLM47,
        [
            ("one", f"Let me see.{glm47('weather', TOKYO)}", [("weather", TOKYO)]),
            ("two", f"Let me see.{glm47('weather', TOKYO)}{glm47('search', '{}')}",
             [("weather", TOKYO), ("search", "{}")]),
        ],
    ),
    "v32": (
        DEEPSEEK_V32,
        [
            ("one", f"Let me see.\n\n{SECTION}\n{dsml('weather', TOKYO)}\n{SECTION_END}", [("weather", TOKYO)]),
            ("two", f"Let me see.\n\n{SECTION}\n{dsml('weather', TOKYO)}\n{dsml('search', '{}')}\n{SECTION_END}",
             [("weather", TOKYO), ("search", "{}")]),
            ("no section", f"Let me see.\n\n{dsml('weather', TOKYO)}", [("weather", TOKYO)]),
        ],
    ),
    "v4": (
        DEEPSEEK_V4,
        [
            ("one", f"Let me see.\n\n{V4_SECTION}\n{dsml('weather', TOKYO)}\n{V4_SECTION_END}", [("weather", TOKYO)]),
            ("two", f"Let me see.\n\n{V4_SECTION}\n{dsml('search', '{}')}\n{dsml('search', '{}')}\n{V4_SECTION_END}",
             [("search", "{}"), ("search", "{}")]),
        ],
    ),
}  # fmt: skip
CASES = [
    pytest.param(format_, text, calls, id=f"{family} {name}")
    for family, (format_, cases) in FORMATS.items()
    for name, text, calls in cases
]


@pytest.mark.parametrize(("format_", "text", "calls"), CASES)
def test_content_and_calls(format_: CallFormat, text: str, calls: Calls) -> None:
    assert read(format_, [text]) == read(format_, list(text)) == ("Let me see.", calls)
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


def test_a_bare_object_is_a_call_only_at_the_start() -> None:
    assert read(LLAMA3, [f"\n{llama('weather', TOKYO)}"]) == ("", [("weather", TOKYO)])
    for text in (f"See {llama('weather', '{}')}", '{"city": "Paris"}', "{not json", '{"name": "nobody"}', "{"):
        assert read(LLAMA3, [text]) == read(LLAMA3, list(text)) == (text, [])


MALFORMED = [
    # What cannot be read is content, marks and all.
    (DEEPSEEK_V3, f"a {BEGINS}{v3('nobody', '{}')}{ENDS}", []),
    (DEEPSEEK_V3, f"a {BEGINS}{BEGIN}function{SEP}weather\n```json\nno object\n```{END}{ENDS}", []),
    (DEEPSEEK_V3, f"a {BEGINS}", []),
    (DEEPSEEK_V3, f"a {BEGINS}{BEGIN}function{SEP}wea", []),
    (DEEPSEEK_V31, f"a {BEGINS} nothing", []),
    (DEEPSEEK_V31, f"a {BEGINS}{BEGIN}weather{END}{ENDS}", []),
    (DEEPSEEK_V31, f"a {BEGINS}{BEGIN}{'weather ' * 60}{SEP}{{}}", []),
    (DEEPSEEK_V31, "a <｜tool▁ca", []),
    (HERMES, f"a {hermes('nobody', '{}')} b", []),
    (HERMES, "a <tool_call>\nweather()\n</tool_call> b", []),
    (HERMES, 'a <tool_call>{"name": "weather"', []),
    (HERMES, 'a <tool_call>{"name": "weather", "arguments": [1]}</tool_call>', []),
    (HERMES, 'a <tool_call>{"name": "weather", "arguments": "cut', []),
    (HERMES, 'a <tool_call>{"name": ["weather"], "arguments": {}}', []),
    (HERMES, 'a <tool_call>{"name": "wea\\uD800ther"}', []),
    (HERMES, "a <tool_call>" + " " * 300 + '{"name": "weather", "arguments": {}}', []),
    (HERMES, "a </tool_call> <tool_call", []),
    (LLAMA3, 'a <|python_tag|>weather.call(city="Rome")', []),
]


@pytest.mark.parametrize(("format_", "text", "calls"), MALFORMED)
def test_what_is_no_call_is_content(format_: CallFormat, text: str, calls: Calls) -> None:
    assert read(format_, [text]) == read(format_, list(text)) == (text, calls)


@pytest.mark.parametrize(
    ("format_", "text", "expected"),
    [
        # A good call after a bad one; a doubled mark.
        (HERMES, f"{hermes('nobody', '{}')}\n{hermes('weather', '{}')}", (hermes("nobody", "{}"), [("weather", "{}")])),
        (HERMES, f"<tool_call>\n{hermes('weather', '{}')}", ("<tool_call>", [("weather", "{}")])),
        (DEEPSEEK_V3, f"{BEGINS}{v3('nobody', '{}')}\n{v3('weather', '{}')}{ENDS}",
         (f"{BEGINS}{v3('nobody', '{}')}", [("weather", "{}")])),
        # Marks inside strings are text, of content too.
        (HERMES, hermes("weather", '{"q": "</tool_call><tool_call>"}'),
         ("", [("weather", '{"q": "</tool_call><tool_call>"}')])),
        (DEEPSEEK_V31, v31("weather", f'{{"q": "{END}{ENDS}{BEGIN}"}}'),
         ("", [("weather", f'{{"q": "{END}{ENDS}{BEGIN}"}}')])),
        # Cut off: what came stays a call.
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ro', ("", [("weather", '{"city": "Ro')])),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ro\\', ("", [("weather", '{"city": "Ro\\')])),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": 1 </tool',
         ("", [("weather", '{"city": 1 </tool')])),
        (HERMES, "<tool_call>{\"name\": \"weather\", \"arguments\": {}}\n</tool_", ("", [("weather", "{}")])),
        # Broken: the mark ends it, and what follows is read as ever.
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": 1</tool_call>\nSo.',
         ("So.", [("weather", '{"city": 1')])),
        (DEEPSEEK_V3, f'{BEGIN}function{SEP}weather\n```json\n{{"a": [1\n```{END}{v3("search", "{}")}',
         ("", [("weather", '{"a": [1\n'), ("search", "{}")])),
        # Content after a call.
        (HERMES, f"{hermes('weather', '{}')}\n\nSo. \n", ("So. \n", [("weather", "{}")])),
        (DEEPSEEK_V31, f"{BEGINS}{v31('weather', '{}')}{ENDS}\n```py\n", ("```py\n", [("weather", "{}")])),
        (LLAMA3, f"{llama('weather', '{}')} So.", ("So.", [("weather", "{}")])),
    ],
)  # fmt: skip
def test_malformed_calls(format_: CallFormat, text: str, expected: tuple[str, Calls]) -> None:
    assert read(format_, [text]) == read(format_, list(text)) == expected


def test_only_one_call_is_read() -> None:
    for cases in FORMATS.values():
        for _, text, calls in cases[1]:
            assert read(cases[0], list(text), only_one=True) == ("Let me see.", calls[:1])


def test_what_is_certain_is_sent_at_once() -> None:
    parser = CallParser(HERMES, FUNCTIONS)
    assert parser.push("Let me ") == ("Let me", [])
    assert parser.push("see. <") == (" see.", [])
    assert parser.push("b>\n<tool_call>") == (" <b>", [])
    assert parser.push('{"name": "weather", "arguments": ') == ("", [])
    said, (named, fragment) = parser.push('{"city": "Ro')
    assert (said, named["function"], fragment["function"]) == (
        "",
        {"name": "weather", "arguments": ""},
        {"arguments": '{"city": "Ro'},
    )
    assert not parser.called
    assert parser.push('me"}')[1] == [{"index": 0, "function": {"arguments": 'me"}'}}]
    assert parser.push("}\n</tool_call>") == ("", []) and parser.called and not parser.full


def test_two_answers_have_ids_of_their_own() -> None:
    ids = {CallParser(HERMES, FUNCTIONS).push(hermes("weather", "{}"))[1][0]["id"] for _ in range(50)}
    assert len(ids) == 50


scraps = st.sampled_from(
    [BEGINS, ENDS, BEGIN, END, SEP, "function", "weather", "\n```json\n", "\n```", "{", "}", '{"name": "weather"',
     ', "arguments": {', '"parameters": {"a": "', '"', "\\", "<tool_call>", "</tool_call>", "<|python_tag|>", "; ",
     SECTION, SECTION_END, V4_SECTION, V4_SECTION_END,
     '<｜DSML｜invoke name="weather">', '<｜DSML｜parameter name="n" string="false">',
     "</｜DSML｜parameter>", "</｜DSML｜invoke>", "<function=weather>", "<function=", "<parameter=city>",
     "<parameter=n>", "<parameter=", "</parameter>", "\n</parameter>", "</function>", "<tool_call>search\n",
     "<arg_key>", "</arg_key>",
     "<arg_key>n</arg_key><arg_value>", "<arg_value>", "</arg_value>", "<|assistant|>", "<|observation|>", "weather\n{",
     "null", "None", "12", ">", dsml("weather", '{"city": "1"}'), coder("weather", '{"city": "1", "days": [1]}'),
     glm45("search", '{"a": "1"}'), glm4("search", '{"a": 1}'),
     "\n", " ", "<", "x", "答", "null", "[", "]", ",", ":", '"type"', "nobody", " " * 200, v3("weather", "{}"),
     v31("search", '{"a": 1}'), hermes("weather", '{"a": "\\"}"}'), llama("search", "{}")]
)  # fmt: skip


@given(
    format_=st.sampled_from([format_ for format_, _ in FORMATS.values()]),
    parts=st.lists(scraps, max_size=12),
    cuts=st.lists(st.integers(0, 999), max_size=8),
    only_one=st.booleans(),
)
@settings(max_examples=900, deadline=None, derandomize=True)
@example(HERMES, ['<tool_call>{"name": "weather"', " " * 200, " " * 200, "}"], [3], False)
def test_however_the_text_is_cut(format_: CallFormat, parts: list[str], cuts: list[int], only_one: bool) -> None:
    text = "".join(parts)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    once = read(format_, [text], only_one)
    assert read(format_, chunks, only_one) == once
    assert read(format_, list(text), only_one) == once
    content, calls = once
    if not calls:  # nothing is lost
        assert content == text


@given(parts=st.lists(scraps, max_size=12), format_=st.sampled_from([DEEPSEEK_V31, HERMES]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_word_is_somewhere(format_: CallFormat, parts: list[str]) -> None:
    """Words that no syntax has, put between the scraps, come out once each and in their order of kind."""
    marked = "".join(f"{part}w{number};" for number, part in enumerate(parts))
    content, calls = read(format_, [marked])
    everything = content + "".join(arguments for _, arguments in calls)
    for number in range(len(parts)):
        assert everything.count(f"w{number};") == 1
