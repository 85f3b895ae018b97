"""Random JSON schemas: nested objects and arrays, enums, unions, references, ranges, patterns, any Unicode.

Owns the hypothesis strategy. What it draws can be satisfied, and is what `engine/grammars/schema.py` says it keeps to.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
NAMES = st.one_of(
    st.text(st.sampled_from("abcdefgh_"), min_size=1, max_size=6),
    st.sampled_from(
        ["名前", "ключ", "ñandú", "a b", "😀", 'q"uote', "back\\slash", "a/b", "tab\tbed", "$ref", "type", ""]
    ),
    TEXT,
)
PATTERNS = st.sampled_from(
    [
        r"^[A-Z]{2}[0-9]{3}$",
        r"^(red|green|blue)$",
        r"^[a-z]+-[0-9]+$",
        r"^\d{3}-\d{4}$",
        r"[a-f0-9]{8}",
        r"^[^@ ]{1,5}@x$",
    ]
)
FORMATS = st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e6, 1e6, allow_nan=False, width=32), TEXT
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=4)


@st.composite
def ranges(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Bounds that leave room, one, two or none."""
    low = draw(st.integers(-5000, 5000)) if kind == "integer" else draw(st.integers(-5000, 5000)) / 8
    made: dict[str, Any] = {"type": kind}
    if draw(st.booleans()):
        made[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        made[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(st.integers(2, 300))
    if kind == "integer" and len(made) != 2 and draw(st.integers(0, 3)) == 0:
        made["multipleOf"] = 2
    return made


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    form = draw(st.integers(0, 3))
    if form == 0:
        return {"type": "string"}
    if form == 1:
        return {"type": "string", "pattern": draw(PATTERNS)}
    if form == 2:
        return {"type": "string", "format": draw(FORMATS)}
    least = draw(st.integers(0, 6))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 20))}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": draw(inner)}
    if draw(st.booleans()):
        made["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    least = draw(st.integers(0, 3))
    made |= {"minItems": least, "maxItems": max(least, len(made.get("prefixItems", ()))) + draw(st.integers(0, 2))}
    return made


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    if draw(st.integers(0, 9)) == 0:
        return {"type": "object", "patternProperties": {"^x[a-z]$": draw(inner)}, "additionalProperties": False}
    properties = draw(st.dictionaries(NAMES, inner, min_size=1, max_size=5))
    required = [name for name in properties if draw(st.booleans())]
    made: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    others = draw(st.sampled_from(["none", "unsaid", "schema"]))
    if others == "none":
        made["additionalProperties"] = False
    elif others == "schema":
        made |= {"additionalProperties": draw(inner), "maxProperties": len(properties) + 2}
    if draw(st.integers(0, 4)) == 0:
        made["description"] = draw(TEXT)
    return made


LEAVES = st.one_of(
    strings(),
    ranges("integer"),
    ranges("number"),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(VALUES, min_size=1, max_size=6).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.just({"type": ["string", "null"], "maxLength": 9}),
    st.just({"$ref": "#/$defs/leaf"}),
    st.just({"$ref": "#/$defs/chain"}),
)
DEFS = {
    "leaf": {"type": "string", "enum": ["ä", "日本", "x"]},
    "chain": {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/chain"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    },
}


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    unions = st.lists(inner, min_size=2, max_size=3).map(lambda options: {"anyOf": options})
    kinds = [{"type": "boolean"}, {"type": "null"}]
    disjoint = st.tuples(objects(inner), st.sampled_from(kinds)).map(lambda pair: {"oneOf": list(pair)})
    return objects(inner) | arrays(inner) | objects(inner) | unions | disjoint


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Whole schemas, with the definitions that references in them point to."""
    return st.recursive(LEAVES, _grown, max_leaves=8).map(lambda schema: {**schema, "$defs": DEFS})
