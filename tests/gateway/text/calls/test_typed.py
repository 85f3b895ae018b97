"""What a schema says of a value, and bare text read by that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.gateway.text.calls.formats import QWEN3_CODER
from twinline.gateway.text.calls.parser import CallParser
from twinline.gateway.text.calls.typed import ANY, NULLABLE, TEXT, Said, as_json, declared, kinds, may_be_other, said_of

ROOT = {
    "$defs": {"point": {"type": "object"}, "loop": {"$ref": "#/$defs/loop"}, "a/b~c": {"type": "boolean"}},
    "properties": {"own": {"type": "integer"}},
    "allOf": [{"properties": {"added": {"type": "array"}}}, {"$ref": "#/$defs/more"}],
}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"type": "string", "nullable": True}, {"string", "null"}),
        ({"enum": ["a", 1, 1.5, None, True, [], {}]}, ANY),
        ({"const": "a"}, {"string"}),
        ({"anyOf": [{"type": "string"}, {"enum": [None]}]}, {"string", "null"}),
        ({"oneOf": [{"type": "array"}, {"$ref": "#/$defs/point"}]}, {"array", "object"}),
        ({"anyOf": [{"type": "string"}, {}]}, ANY),
        ({"allOf": [{"type": ["string", "null"]}, {"description": "d"}, {"enum": ["a"]}]}, {"string"}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"boolean"}),
        ({"properties": {}}, {"object"}),
        ({"items": {}}, {"array"}),
        ({"type": "dict"}, ANY),
        ({}, set()),
        (True, set()),
        ({"$ref": "#/$defs/loop"}, set()),
        ({"$ref": "https://example.org/schema"}, set()),
        ({"$ref": "#/$defs/nothing"}, set()),
        ({"type": []}, ANY),
        ({"type": 5}, ANY),
        ({"enum": 5}, set()),
        ({"anyOf": 5}, set()),
    ],
)
def test_what_a_schema_says(schema: Any, said: set[str]) -> None:
    assert kinds(schema, ROOT) == said


def test_parameters_of_a_schema_that_refers_and_combines() -> None:
    root = {
        **ROOT,
        "$defs": {**ROOT["$defs"], "more": {"properties": {"own": {"type": "string"}, "far": {"const": 1}}}},
    }
    found = {name: kinds(schema, root) for name, schema in declared(root).items()}
    assert found == {"own": {"integer"}, "added": {"array"}, "far": {"integer"}}
    assert declared(None) == {} and declared({"properties": 5}) == {} and declared({"$ref": "#"}) == {}


class Looks(dict[str, Any]):
    """A schema, and how often any of them was asked for one of its words."""

    count = 0

    def get(self, name: str, default: Any = None) -> Any:
        Looks.count += 1
        assert Looks.count <= 100_000  # rather than go on for ever
        return super().get(name, default)


def looked_at(schema: dict[str, Any]) -> dict[str, Any]:
    Looks.count = 0
    found: dict[str, Any] = json.loads(json.dumps(schema), object_hook=Looks)
    return found


def circle(word: str) -> dict[str, Any]:
    itself = {"$ref": "#/$defs/a"}
    return {"properties": {"x": itself}, "$defs": {"a": {word: [itself] * 4, "pattern": "p"}}}


EACH_OTHER = {
    "properties": {
        f"p{n}": {"anyOf": [{"$ref": f"#/properties/p{(n + step) % 200}"} for step in (1, 2)], "pattern": "p"}
        for n in range(200)
    }
}


@pytest.mark.parametrize(
    ("schema", "name", "schemas"), [(circle("anyOf"), "x", 6), (circle("allOf"), "x", 6), (EACH_OTHER, "p0", 600)]
)
def test_a_schema_that_goes_in_circles_is_looked_at_once(schema: dict[str, Any], name: str, schemas: int) -> None:
    root = looked_at(schema)
    value = declared(root)[name]
    assert Looks.count <= 10  # of the root alone
    said = said_of(value, root)
    assert not said.free
    assert schemas <= Looks.count <= 20 * schemas


def test_no_more_is_looked_at_than_a_schema_of_a_value_has() -> None:
    root = looked_at({"properties": {"x": {"anyOf": [{"const": str(n)} for n in range(5000)]}}})
    said = said_of(declared(root)["x"], root)
    assert "900" in said.words and "4000" not in said.words
    assert Looks.count <= 20 * 1000
    root = looked_at({"properties": {"x": {"anyOf": [{"anyOf": [{"type": "string"}] * 5}] * 1000}}})
    assert kinds(declared(root)["x"], root) == ANY  # as of a schema that does not say all


def test_only_what_a_model_writes_is_looked_up() -> None:
    text = "<function=f>\n<parameter=p7>\np\n</parameter>\n</function>"
    parser = CallParser(QWEN3_CODER, {"f": looked_at(EACH_OTHER)})
    _, deltas = parser.push(text)
    assert "".join(delta["function"].get("arguments", "") for delta in deltas) == '{"p7": "p"}'
    assert Looks.count <= 20 * 600  # one walk, not one for each of the 200


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        ("12", {"integer"}, "12"),
        (" 12\n", {"integer"}, "12"),
        ("12", {"string"}, '"12"'),
        ("12", {"string", "integer"}, "12"),
        ("1.5", {"string", "integer"}, '"1.5"'),
        ("1.50", {"integer"}, "1.50"),
        ("1e999", {"number"}, "1e999"),
        ("9" * 5000, {"integer"}, "9" * 5000),
        ("012", {"integer"}, '"012"'),
        ("NaN", {"number"}, '"NaN"'),
        ("true", {"boolean"}, "true"),
        ("False", {"boolean"}, "false"),
        ("yes", {"boolean"}, '"yes"'),
        ("True", {"string"}, '"True"'),
        ("None", {"integer"}, "null"),
        ("null", {"string"}, '"null"'),
        ("null", {"string", "null"}, "null"),
        ('{"a": 1.0}', {"object"}, '{"a": 1.0}'),
        ("{'a': (1, None), 'b': \"it's\"}", {"object"}, '{"a": [1, null], "b": "it\'s"}'),
        ('{"a": NaN}', {"object"}, json.dumps('{"a": NaN}')),
        ("{1, 2}", {"object"}, '"{1, 2}"'),
        ("['\\ud800']", {"array"}, json.dumps("['\\ud800']")),
        ("[1]", {"string"}, '"[1]"'),
        ("[1]", {"string", "object"}, '"[1]"'),
        ('"[1, 2]"', {"array"}, "[1, 2]"),
        ('"a"', {"array"}, json.dumps('"a"')),
        ("[" * 100_000, {"array"}, json.dumps("[" * 100_000)),
        ("[" * 5_000 + "]" * 5_000, {"array"}, json.dumps("[" * 5_000 + "]" * 5_000)),
        ("", {"integer"}, '""'),
        (" a ", ANY, '" a "'),
        ("null", ANY, "null"),
    ],
)
def test_bare_text_as_json(text: str, said: set[str], expected: str) -> None:
    assert as_json(text, Said(frozenset(said))) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(value=values)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_value_comes_back_from_how_templates_write_it(value: Any) -> None:
    said = said_of({"enum": [value]}, {})
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    assert json.loads(as_json(written, said)) == value
    if isinstance(value, bool) or value is None:
        assert json.loads(as_json(str(value), said)) is value


@given(text=st.text(), said=st.frozensets(st.sampled_from(sorted(ANY))))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_is_written_becomes_json(text: str, said: frozenset[str]) -> None:
    json.loads(as_json(text, Said(said)))


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"enum": ["a", " b"]}, "\n a ", "a"),
        ({"enum": ["a", " b"]}, " b", " b"),
        ({"enum": ["a"]}, " c ", " c "),
        ({"anyOf": [{"const": "a"}, {"type": "null"}]}, " a ", "a"),
        ({"type": "string", "format": "date"}, "\n2025-01-01\n", "2025-01-01"),
        ({"$ref": "#/$defs/word"}, " ab", "ab"),
        ({"type": "string", "maxLength": 3}, " ab\n", "ab"),
        ({"type": "string", "maxLength": 3}, " a ", " a "),
        ({"type": "string", "maxLength": 5000}, " a" * 3000, " a" * 3000),
        ({"type": "string"}, " a ", " a "),
    ],
)
def test_white_space_that_a_text_cannot_have_is_not_its_own(schema: Any, text: str, expected: str) -> None:
    said = said_of(schema, {"$defs": {"word": {"type": "string", "pattern": "^[a-z]+$"}}})
    assert json.loads(as_json(text, said)) == expected
    assert may_be_other("", said) == (schema.get("maxLength", 0) < 300 and schema != {"type": "string"})


def test_what_may_still_be_no_text() -> None:
    text, nullable = Said(TEXT), Said(NULLABLE)
    assert not may_be_other("", text) and may_be_other("", nullable) and may_be_other("\nnul", nullable)
    assert not may_be_other("nulls", nullable) and not may_be_other(" " * 9, nullable)
    assert may_be_other("text", Said(ANY)) and may_be_other("text", Said(TEXT, frozenset({"text"})))
