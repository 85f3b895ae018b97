"""Strings and numbers of JSON that are written out: formats, lengths beside patterns, surrogates, values of an enum."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.grammars.test_pattern import fits, fits_schema

from twinline.engine.grammars.formats import FORMATS
from twinline.engine.grammars.grammar import BadGrammar
from twinline.engine.grammars.library import installed

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")

GOOD = {
    "date": ["2023-01-31", "2023-04-30", "2024-02-29", "2000-02-29", "0400-02-29"],
    "time": ["00:00:00Z", "23:59:59.123456+01:30", "12:00:00-23:59"],
    "date-time": ["2024-02-29T00:00:00Z", "1999-12-31T23:59:59.5-11:00"],
    "duration": ["P1W", "P1Y2M3DT4H5M6S", "PT1H", "P2D", "P1MT1S"],
    "email": ["a@b.co", "first.o'last+tag@sub.example.org"],
    "hostname": ["a", "example.com", "xn--x.de", "1a.de"],
    "ipv4": ["0.0.0.0", "255.255.255.255", "10.20.30.199"],
    "ipv6": ["::", "::1", "1::", "1::8", "2001:db8::8a2e:370:7334", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::",
             "::2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4",
             "64:ff9b::192.0.2.33", "fe80::5efe:1.2.3.4", "1:2:3:4:5::1.2.3.4"],
    "uuid": ["2EB8AA08-aa98-11ea-b4aa-73b441d16380"],
}  # fmt: skip
BAD = {
    "date": ["2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01", "2023-00-10", "0000-01-01", "23-01-01"],
    "time": ["23:59:60Z", "24:00:00Z", "12:00:00", "12:00Z", "12:00:00+24:00"],
    "date-time": ["2023-06-31T00:00:00Z", "2023-06-30T00:00:60Z", "2023-06-30 00:00:00Z"],
    "duration": ["P", "PT", "P1", "P1Y2D", "P1WT1H", "1D"],
    "email": ["a", "@b.co", "a@b", "a..b@c.de", "a@-b.co"],
    "hostname": ["", "-a", "a-", "a..b", "a_b"],
    "ipv4": ["1.2.3", "01.2.3.4", "1.2.3.004", "256.1.1.1"],
    "ipv6": [
        ":",
        "1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:9",
        "1::2::3",
        ":::",
        "12345::",
        "::1.2.3.04",
        "1:2:3:4:5:6::1.2.3.4",
        "1::3:4:5:6:7:1.2.3.4",
        "1::1.2.3.4:5",
    ],
    "uuid": ["2eb8aa0-aa98-11ea-b4aa-73b441d16380", "2eb8aa08aa9811eab4aa73b441d16380"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_what_validators_take(name: str) -> None:
    schema = {"type": "string", "format": name}
    for text in GOOD[name]:
        assert fits_schema(schema, json.dumps(text)), text
    for text in BAD[name]:
        assert not fits_schema(schema, json.dumps(text)), text


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "string", "maxLength": 200}, {"type": "object"}, {}])
def test_no_half_of_a_pair_comes_alone(schema: dict[str, Any]) -> None:
    """Neither as bytes, which are no UTF-8, nor escaped, which many parsers of JSON refuse."""

    def said(inside: bytes) -> bytes:
        return b'{"%b": 1}' % inside if schema.get("type") == "object" else b'"%b"' % inside

    for text in ("\ud7ff", "\ue000", "é😀"):
        assert fits_schema(schema, said(text.encode()))
    for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF):
        assert not fits_schema(schema, said(chr(code).encode("utf-8", "surrogatepass")))
    if "maxLength" not in schema:
        for escaped, good in ((rb"\ud83d\ude00", True), (rb"\uD7FF\ue000\u00E9", True), (rb"\ud83d", False),
                              (rb"\ud83d\n", False), (rb"\ude00", False), (rb"\ud83d\ud83d", False)):  # fmt: skip
            assert fits_schema(schema, said(escaped)) == good


def test_no_control_character_comes_in_the_arguments_of_a_forced_call() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 500}}, "required": ["a"]}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    assert fits("structural_tag", json.dumps(tag), '{"a": "b"}')
    assert not fits("structural_tag", json.dumps(tag), '{"a": "\x01"}')


def test_a_clients_own_rules_beside_schemas_are_left_as_they_are() -> None:
    rules = {"type": "grammar", "grammar": r'root ::= [^"\\\r\n]+'}
    tag = {"type": "structural_tag", "format": rules}
    assert fits("structural_tag", json.dumps(tag), "a\tb") and not fits("structural_tag", json.dumps(tag), 'a"b')


def test_a_length_that_would_take_too_long_to_compile_is_refused() -> None:
    for text in ({"format": "email", "maxLength": 254}, {"pattern": r"^\S(.*\S)?$", "maxLength": 255}):
        with pytest.raises(BadGrammar, match="takes too long to mask with the length beside it"):
            fits_schema({"type": "string"} | text, '"a"')
    assert fits_schema({"type": "string", "pattern": "^[A-Za-z ]+$", "maxLength": 100}, '"a b"')


@pytest.mark.parametrize("value", [0.1, -0.1, 6.791683, 1e-7, 0.30000000000000004, 1.0, 1e300, 2**53, 12])
def test_a_number_is_written_as_it_was(value: float) -> None:
    for schema, answer in (({"const": value}, value), ({"enum": ["a", {"k": [value]}]}, {"k": [value]})):
        text = json.dumps(answer, separators=(",", ":"))
        if not (isinstance(value, float) and value.is_integer()):
            assert fits_schema(schema, text)
        assert not fits_schema(schema, text.replace(str(value), f"{value:.25f}"))


def test_a_text_is_not_taken_for_a_stand_in() -> None:
    for text in ("twinline-number-0", "twinline-number--0", "twinline-pattern-0"):
        schema = {"type": "object", "properties": {text: {"enum": [text, 0.5]}}, "required": [text]}
        assert fits_schema(schema, json.dumps({text: text})) and fits_schema(schema, json.dumps({text: 0.5}))
        assert not fits_schema(schema, '{"0.5": 0.5}')


LIMITED = [
    "^[a-z]+$",
    "^[a-c]*$",
    "^a[bc]*$",
    "^[ab]{2,9}-(?:xy|yx)$",
    "^(?:ab|c)+$",
    "a|bcd",
    "[^a]+",
    "^.{1,}$",
    "^a",
]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_length_beside_a_pattern(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(LIMITED))
    least = data.draw(st.integers(0, 6))
    most = data.draw(st.none() | st.integers(least, least + 6))
    schema = {"type": "string", "pattern": pattern, "minLength": least} | ({} if most is None else {"maxLength": most})
    drawn = st.from_regex(pattern, fullmatch=pattern[0] != "^")
    texts = [text for text in (data.draw(drawn) for _ in range(4))
             if all(32 <= ord(letter) < 127 and letter not in '"\\' for letter in text)]  # fmt: skip
    fitting = [len(text) >= least and (most is None or len(text) <= most) for text in texts]
    try:
        fits_schema(schema, '""')
    except BadGrammar:
        assert not any(fitting), schema
        return
    for text, good in zip(texts, fitting, strict=True):
        assert fits_schema(schema, json.dumps(text)) == good, (text, schema)
