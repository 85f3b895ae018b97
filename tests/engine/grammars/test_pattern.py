"""Patterns in the grammar that is made of them: each byte a token, so that every text can be tried."""

from __future__ import annotations

import functools
import itertools
import json
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twinline.engine.grammars.grammar import BadGrammar, Grammar
from twinline.engine.grammars.library import Library, installed
from twinline.engine.grammars.pattern import text_pattern
from twinline.engine.grammars.stand_ins import StandIns
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.gateway.grammar import _quoted

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")
BYTES = 256


@functools.cache
def library() -> Library:
    return Library(Vocabulary(tuple(bytes([i]) for i in range(BYTES)), frozenset()))


@functools.cache
def compiled(kind: str, text: str) -> Any:
    return library().read(library().compile(Grammar(kind, text)), kind)


def fits(kind: str, text: str, answer: str | bytes) -> bool:
    matcher = compiled(kind, text).matcher(frozenset())
    data = answer.encode() if isinstance(answer, str) else answer
    words = np.zeros(BYTES // 32, dtype=np.int32)
    return all(matcher.accept(byte) for byte in data) and bool(matcher.allow(words))


def fits_schema(schema: Any, answer: str | bytes) -> bool:
    return fits("json_schema", json.dumps(schema), answer)


TEXTS = [
    "",
    "a",
    "^",
    "b",
    "ab",
    "a\nb",
    "a\tb",
    "é",
    "]",
    "-",
    "\\",
    '"',
    "\x01",
    "\x7f",
    "7",
    " ",
    "😀",
    "\\7",
    'a"b',
]
PATTERNS = [r"[\^a]", r"[^\^a]", r"\^", r"[\^-b]", r"[a\-z]", r"[\]a]", ".", "a.b", r"\\\d", '"', r"[^\"]*", r"a\nb",
            r"[\t\n\x01]", r"\\", "[^é]*", "[ -~]+", r"\S", r"[\s\S]+", "(?:a|b)+?", r"\u00e9",
            r"[\x00-\x7f]"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_read_as_everybody_reads_it(pattern: str) -> None:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    for text in TEXTS:
        meant = re.fullmatch(pattern, text) is not None
        assert fits("regex", pattern, text) == meant, text
        assert fits("regex", f"(?:{pattern})x{{128}}", text + "x" * 128) == meant, text
        assert fits_schema(schema, json.dumps(text, ensure_ascii=False)) == meant, text
        if json.dumps(text, ensure_ascii=False) != f'"{text}"':
            assert not fits_schema(schema, f'"{text}"'), "it is no JSON"


def test_a_named_group_is_a_group_in_both_notations() -> None:
    assert fits("regex", "(?<x>a|b)c", "bc") and fits("regex", "(?P<x1>a|b)c", "ac")


def test_a_pattern_anchored_at_one_end_is_open_at_the_other() -> None:
    url, page = {"type": "string", "pattern": "^https?://"}, {"type": "string", "pattern": r"\.html$"}
    assert fits_schema(url, '"https://a.b/\\"c\\""') and not fits_schema(url, '"a https://"')
    assert fits_schema(page, '"a.html"') and not fits_schema(page, '"a.htm"')
    word = {"type": "string", "pattern": "a+"}  # narrower than the standard
    assert fits_schema(word, '"aa"') and not fits_schema(word, '"xaa"')
    names = {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}
    assert fits_schema(names, '{"x-a": 1}') and not fits_schema(names, '{"y": 1}')


def test_an_anchor_that_all_options_have_is_that_of_the_whole() -> None:
    for pattern in ("^$|^[a-z]+x$", "^(?:a|bx)$|^$|^ax$"):
        for text in ("", "a", "ax", "bx", "axb", "1ax"):
            meant = re.search(pattern, text) is not None
            assert fits("regex", pattern, text) == meant, (pattern, text)
            assert fits_schema({"type": "string", "pattern": pattern}, json.dumps(text)) == meant, (pattern, text)
    for pattern in ("^a|^b", "a$|(b|c)$"):
        for text in ("a", "b", "xa", "bx", "xc", "x", "axb", "xbx"):
            meant = re.search(pattern, text) is not None
            assert fits_schema({"type": "string", "pattern": pattern}, json.dumps(text)) == meant, (pattern, text)
    for pattern in ("^a$|^b", "^a|b$|^c", "(^a|b)", "^a^|^b"):
        with pytest.raises(BadGrammar, match="at the ends"):
            fits("regex", pattern, "a")


def test_characters_have_one_form_in_utf8() -> None:
    for data in (b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xed\xa0\x80", b"\xc1\xbf"):
        assert not fits("regex", ".", data) and not fits("regex", ".|a{200}", data)


def test_a_counted_string_has_escapes() -> None:
    some, three = {"type": "string", "minLength": 1}, {"type": "string", "minLength": 2, "maxLength": 3}
    assert fits_schema(some, r'"a\n\"b\""') and not fits_schema(some, '""')
    assert fits_schema(three, r'"\n\\\""') and not fits_schema(three, r'"\n"') and not fits_schema(three, '"abcd"')
    assert not fits_schema(some, '"a\tb"') and fits_schema(some, '"é😀"')


@pytest.mark.parametrize("limit", [{"pattern": '^".*"$'}, {"minLength": 3}, {"format": "json-pointer"}])
def test_strings_of_a_forced_call_are_json(limit: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"} | limit}, "required": ["a"]}
    content = {"type": "json_schema", "json_schema": schema}
    tag = json.dumps(
        {"type": "structural_tag", "format": {"type": "tag", "begin": "<c>", "content": content, "end": "</c>"}}
    )
    assert fits("structural_tag", tag, r'<c>{"a": "\"/x\""}</c>')
    assert not fits("structural_tag", tag, '<c>{"a": "/x"y"}</c>') and not fits(
        "structural_tag", tag, '<c>{"a": "/x\ty"}</c>'
    )


def test_options_of_what_is_required_leave_a_forced_call_its_properties() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/n"}, "c": {}},
              "required": ["c"], "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
              "$defs": {"n": {"type": "null"}}}  # fmt: skip
    content = {"type": "json_schema", "json_schema": schema}
    tag = json.dumps({"type": "structural_tag", "format": {"type": "sequence", "elements": [content]}})
    for answer in ('{"a": 1, "c": 2}', '{"b": null, "c": 2}', '{"a": 1, "b": null, "c": 2}'):
        assert fits("structural_tag", tag, answer)
    for answer in ('{"c": 2}', '{"a": 1}', '{"a": "x", "c": 2}', '{"d": 1, "c": 2}'):
        assert not fits("structural_tag", tag, answer)


@pytest.mark.parametrize("value", ["éb", "\x7fa", "\\xe9", "\xadc", 'Regex("^twinline-pattern-0$", json_string=true)'])
def test_values_beside_a_pattern_stay_what_they_are(value: str) -> None:
    held = {"p": {"type": "string", "pattern": "^[a-c]$"}, "v": {"const": value}, value: {"type": "null"}}
    answer = json.dumps({"p": "a", "v": value, value: None}, ensure_ascii="\x7f" in value)
    assert fits_schema({"type": "object", "properties": held, "required": list(held)}, answer)


@pytest.mark.parametrize("choice", ["\nb", "a\nd", "\t1", "\r\nabc", "\x7fa", 'q"\\', "\x1b[0m", "é"])
def test_a_choice_is_just_that_text(choice: str) -> None:
    assert fits("ebnf", f"root ::= {_quoted(choice)}", choice)


def test_a_compiler_that_writes_grammars_otherwise_is_told_of() -> None:
    stand_ins = StandIns()
    name = stand_ins.pattern("a")
    assert stand_ins.put_into(f'root ::= Regex("{name}", json_string=true)') == 'root ::= Regex("a")'
    with pytest.raises(BadGrammar, match="this version of xgrammar"):
        stand_ins.put_into(f'root ::= Pattern("{name}")')


@st.composite
def patterns(draw: st.DrawFn, depth: int = 3) -> str:
    """Nested groups, options and repeats of three letters."""
    form = draw(st.integers(0, 4)) if depth else 0
    if form < 2:
        return draw(st.sampled_from("abc"))
    one = draw(patterns(depth - 1))
    if form == 2:
        return one + draw(patterns(depth - 1))
    if form == 3:
        return f"(?:{one}|{draw(st.just('') | patterns(depth - 1))})"
    return f"({one}){draw(st.sampled_from(['*', '+', '?', '{0,2}', '{2}', '{2,}', '+?']))}"


TRIED = ["".join(letters) for length in range(5) for letters in itertools.product("abc", repeat=length)]


@settings(deadline=None, max_examples=60)
@given(patterns())
@example("(cb*)?a")
@example("a(b{0,2}|b)")
@example("(b+c)?a")
def test_a_pattern_matches_what_python_says(pattern: str) -> None:
    for text in TRIED:
        assert fits("regex", pattern, text) == (re.fullmatch(pattern, text) is not None), (pattern, text)


def test_options_and_repeated_groups_inside_json() -> None:
    schema = {"type": "string", "pattern": '^[A-Z]{2}(-[0-9]+)?("\\n|\\u0001\\\\)*$'}
    for text, good in (("AB", True), ("AB-12", True), ("AB12", False), ('AB"\n', True), ('AB-1"\n\x01\\', True),
                       ('AB"', False), ("AB\n", False)):  # fmt: skip
        assert fits_schema(schema, json.dumps(text)) == good
    anything = {"type": "string", "pattern": "^(a|bc)"}
    for text, good in (("a", True), ("bc\n😀\ufeff\x1f", True), ("b", False)):
        assert fits_schema(anything, json.dumps(text, ensure_ascii=False)) == good


@pytest.mark.parametrize("pattern", ["(x|y)a{3,2}", "(?:ab){2,1}", "a{3,2}"])
def test_a_count_whose_numbers_are_out_of_order_is_refused(pattern: str) -> None:
    with pytest.raises(BadGrammar):
        fits("regex", pattern, "")


@pytest.mark.parametrize(
    ("pattern", "blamed"), [("(?:[a-z]{1,500} ?){1,10}", "too many ways"), ("(.*a.{15})?", "more than 20000 states")]
)
def test_a_pattern_that_grows_too_large_is_refused_in_time(pattern: str, blamed: str) -> None:
    began = time.process_time()
    with pytest.raises(BadGrammar, match=blamed):
        text_pattern(pattern, "it")
    assert time.process_time() - began < 15


def test_a_class_of_many_ranges_costs_little() -> None:
    apart = "".join(chr(0x4E00 + 2 * number) for number in range(400))
    began = time.process_time()
    text_pattern(f"(?:[{apart}]{{1,20}} ?){{1,5}}", "it")
    assert time.process_time() - began < 10
