"""JSON schemas as they are compiled: what is refused, by which name, and what is rewritten."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twinline.engine.grammars.disjoint import apart
from twinline.engine.grammars.grammar import BadGrammar, Grammar
from twinline.engine.grammars.pattern import text_pattern
from twinline.engine.grammars.schema import DEEPEST, MOST_PARTS, strict_schema
from twinline.engine.grammars.stand_ins import StandIns

TEXT = {"type": "string"}


def read(schema: Any) -> Any:
    return json.loads(strict_schema(json.dumps(schema), StandIns()))


@pytest.mark.parametrize(
    ("schema", "blamed"),
    [
        ({"not": TEXT}, "not is not supported"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": TEXT}, "contains"),
        ({"if": TEXT}, "if is not"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"allOf": [TEXT, {"minLength": 2}]}, "allOf"),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "type beside anyOf"),
        ({"$ref": "#/$defs/a", "minLength": 2, "$defs": {"a": TEXT}}, "minLength beside $ref"),
        ({"enum": ["a"], "minLength": 2}, "minLength beside enum"),
        ({"enum": [1], "type": "string"}, "no value of enum"),
        ({"enum": []}, "at least one value"),
        ({"const": 2**70}, "64 bits"),
        ({"oneOf": [TEXT, {"enum": ["a"]}]}, "oneOf whose schemas may both fit"),
        ({"minLength": 2}, "minLength needs a type"),
        ({"type": "strin"}, "type must be"),
        ({"type": []}, "type must be"),
        ({"type": "string", "pattern": "a", "format": "date"}, "only one"),
        ({"type": "string", "pattern": "^a{2}$", "maxLength": 1}, "#/pattern: no text fits"),
        ({"type": "string", "format": "date", "minLength": 11}, "#/format: no text fits"),
        ({"type": "string", "pattern": "(a|b"}, "not closed"),
        ({"type": "string", "pattern": "a)|b"}, "not opened"),
        ({"type": "string", "pattern": "(+a|b)"}, "nothing to repeat"),
        ({"type": "string", "pattern": "a$b"}, "$ is supported at the ends"),
        ({"type": "string", "pattern": r"\bword"}, r"\b is not supported"),
        ({"type": "string", "pattern": r"\h"}, r"\h is not supported"),
        ({"type": "string", "pattern": "(?i)a"}, "(?i) is not supported"),
        ({"type": "string", "pattern": "a{,3}"}, "{,3} is no count"),
        ({"type": "string", "pattern": "[b-a]"}, "without two ends in order"),
        ({"type": "string", "pattern": "a{2000}"}, "repeated more than"),
        ({"type": "string", "pattern": "((a{1,99}b)?{1,99}){1,99}"}, "repeated more than"),
        ({"type": "string", "maxLength": 10**9}, "maxLength must be a whole number"),
        ({"type": "string", "minLength": 1.5}, "minLength must be a whole number"),
        ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
        ({"type": "integer", "multipleOf": 3, "minimum": 0}, "multipleOf"),
        ({"type": "integer", "minimum": "0"}, "minimum must be a number"),
        ({"type": "integer", "maximum": 1e300}, "64 bits"),
        ({"type": "array", "items": [TEXT]}, "prefixItems"),
        ({"type": "object", "properties": {"a": TEXT}, "required": ["b"], "additionalProperties": False}, "'b'"),
        ({"type": "object", "required": ["b"], "unevaluatedProperties": False}, "'b'"),
        ({"type": "object", "properties": {"a": TEXT}, "patternProperties": {"^b": TEXT}}, "patternProperties"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": [1]}, "properties must be an object"),
        ({"$ref": "https://example.org/a.json"}, "$ref must point into this schema"),
        ({"$ref": "#/$defs/none"}, "points at nothing"),
        ({"$ref": "#"}, "points at itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "points at itself"),
        (False, "false allows nothing"),
        ([], "a schema is an object"),
        ({"type": "object", "properties": {"a": {"items": 3, "type": "array"}}}, "#/properties/a/items"),
    ],
)
def test_what_would_not_be_kept_to_is_refused(schema: Any, blamed: str) -> None:
    with pytest.raises(BadGrammar) as error:
        read(schema)
    assert blamed in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "nul", '{"const": NaN}', "[" * 100_000, '{"a": "\ud800"}'[:8]])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BadGrammar):
        strict_schema(text, StandIns())


def test_size_and_depth_are_bounded() -> None:
    deep: Any = TEXT
    for _ in range(DEEPEST + 1):
        deep = {"type": "array", "items": deep}
    for schema in (deep, {"enum": list(range(MOST_PARTS + 1))}, {"anyOf": [{"type": "null"}] * (MOST_PARTS + 1)}):
        with pytest.raises(BadGrammar, match=r"nested more than|more than"):
            read(schema)


def test_what_is_rewritten_means_the_same_or_less() -> None:
    assert read(True) == {}
    assert read({"title": "t", "x-mine": 3, "type": "null"}) == {"type": "null"}
    assert read({"const": "a"}) == read({"enum": ["a", 3], "type": "string"}) == {"enum": ["a"]}
    assert read({"type": "string", "format": "json-pointer"}) == TEXT
    assert read({"type": "array"}) == {"type": "array", "items": {}}
    free, closed = read({"type": "object"}), read({"type": "object", "properties": {"a": TEXT}})
    assert (free["additionalProperties"], closed["additionalProperties"]) == ({}, False)
    assert "b" in read({"type": "object", "properties": {"a": TEXT}, "required": ["b"]})["properties"]
    assert read({"type": ["string", "null"], "maxLength": 3})["anyOf"] == [
        TEXT | {"pattern": "^twinline-pattern-0$"},
        {"type": "null"},
    ]
    assert read({"oneOf": [TEXT, {"type": "null"}]}) == {"anyOf": [TEXT, {"type": "null"}]}


def test_one_of_by_a_fixed_property() -> None:
    """What pydantic writes for a discriminated union."""

    def kind(name: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}

    refs = [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]
    assert "anyOf" in read({"oneOf": refs, "$defs": {"a": kind("a"), "b": kind("b")}})
    with pytest.raises(BadGrammar):
        read({"oneOf": refs, "$defs": {"a": kind("a"), "b": kind("a")}})


def test_disjoint_is_said_only_where_it_is_sure() -> None:
    assert apart([{"const": 1}, {"const": 2}, {"type": "string"}])
    assert not apart([{"const": {"a": 1}}, {"const": {"a": 1.0}}])
    assert not apart([{"type": "integer"}, {"type": "number"}])
    assert not apart([{"properties": {"a": TEXT}}, {"type": "string"}])  # a string has no properties to be wrong
    assert not apart([True, {"type": "null"}])


def test_patterns_that_are_read_as_they_are_meant() -> None:
    for pattern in ("^a[$^]b$", r"\$[0-9]+", "a|b", r"[\]^]x", "x{3,5}", r"[(]{900}(a{900}|\({900}){9}b{900}"):
        text_pattern(pattern, "p")


@pytest.mark.parametrize(
    ("kind", "text", "after", "opener"),
    [("json", "{}", "", ""), ("regex", "", "", ""), ("regex", "a\0", "", ""), ("regex", "a" * 2**19, "", ""),
     ("regex", "a", "b" * 99, ""), ("regex", "a", "", "<think>")],
)  # fmt: skip
def test_a_grammar_is_checked(kind: str, text: str, after: str, opener: str) -> None:
    with pytest.raises(BadGrammar):
        Grammar(kind, text, after, opener)
