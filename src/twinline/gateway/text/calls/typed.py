"""A value that a model writes as bare text, as the JSON that the tool's schema makes of it.

Owns what a schema says of a value's type, and reading text by that. Must not know how a call is written: Qwen3-Coder's
and GLM-4.5's calls name no types, so `12` is a number or a text by the schema alone.

Their templates write a text as it is and all else as JSON, but Qwen3-Coder's writes Python's words for true, false and
null: `True` and `None` are read too, and so are objects and arrays in Python's notation.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Kinds = frozenset[str]

TEXT: Kinds = frozenset({"string"})
ANY: Kinds = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
NO_TEXT: Kinds = ANY - TEXT
NULLABLE: Kinds = TEXT | {"null"}

_SHORT = 256  # characters: a longer text is not held back for its `maxLength`
_DEEPEST = 16  # references and combinations that are followed
_MOST = 1000  # schemas that are looked at for one value: clients write them, and they may go in circles
_LONGEST_LITERAL = 20_000  # characters in Python's notation
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?P<fraction>\.[0-9]+)?(?P<power>[eE][+-]?[0-9]+)?")
_NULLS = ("null", "None")
_BOOLEANS = {"true": "true", "True": "true", "false": "false", "False": "false"}
_OF_VALUE = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a schema says of a value: its `kinds`, and of a text which `words` it may be, that it has a form (`formed`:
    a pattern or a format), or how long it may be.

    White space around a text which these do not allow is not the text's: xgrammar lets it stand between the marks.
    """

    kinds: Kinds
    words: frozenset[str] = frozenset()
    formed: bool = False
    longest: int | None = None

    @property
    def free(self) -> bool:
        """A text, whatever it may be."""
        return not (self.words or self.formed or self.longest is not None)

    def own(self, text: str) -> str:
        bare = text.strip()
        too_long = self.longest is not None and len(text) > self.longest
        return bare if self.formed or too_long or (text not in self.words and bare in self.words) else text


def declared(parameters: object) -> dict[str, object]:
    """The schema of each parameter that a function's schema names.

    Not what they say (`said_of`): that takes a walk each, and a model writes few of them.
    """
    found: dict[str, object] = {}
    for schema in _parts(parameters, parameters):
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            for name, value in properties.items():
                if isinstance(name, str):
                    found.setdefault(name, value)
    return found


def said_of(schema: object, root: object) -> Said:
    words: list[object] = []
    formed, longest = False, None
    for part in _parts(schema, root):
        words += _listed(part, "enum") + ([part["const"]] if "const" in part else [])
        formed = formed or "pattern" in part or "format" in part
        limit = part.get("maxLength")
        if isinstance(limit, int) and limit <= _SHORT:
            longest = limit
    return Said(kinds(schema, root), frozenset(word for word in words if isinstance(word, str)), formed, longest)


def _parts(schema: object, root: object) -> Iterator[Mapping[str, Any]]:
    """The schema and those that it refers to or combines, each once."""
    seen: set[int] = set()
    waiting = [schema]
    while waiting and len(seen) < _MOST:
        part = waiting.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        combined = [each for word in ("allOf", "anyOf", "oneOf") for each in _listed(part, word)]
        waiting += [*reversed(combined), _referred(part, root)]


def kinds(schema: object, root: object) -> Kinds:
    """The types of JSON Schema that a value may have; empty where the schema does not say."""
    return _kinds(schema, root, 0, {})


def _kinds(schema: object, root: object, depth: int, known: dict[int, Kinds]) -> Kinds:
    """`known`: by `id`, the schemas that were looked at; one that refers to itself says nothing there."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return frozenset()
    if id(schema) not in known and len(known) < _MOST:
        known[id(schema)] = frozenset()
        known[id(schema)] = _kinds_of(schema, root, depth + 1, known)
    return known.get(id(schema), frozenset())


def _kinds_of(schema: Mapping[str, Any], root: object, depth: int, known: dict[int, Kinds]) -> Kinds:
    """`depth`: of what it refers to or combines."""
    said = schema.get("type")
    if said is not None:
        names = frozenset(name for name in (said if isinstance(said, list) else [said]) if isinstance(name, str))
        found = names if names and names <= ANY else ANY  # a word that is none of JSON Schema's, such as `dict`
    elif isinstance(listed := schema.get("enum"), list):
        found = frozenset(map(_kind_of, listed))
    elif "const" in schema:
        found = frozenset({_kind_of(schema["const"])})
    elif "$ref" in schema:
        found = _kinds(_referred(schema, root), root, depth, known)
    elif all_of := [each for part in _listed(schema, "allOf") if (each := _kinds(part, root, depth, known))]:
        found = frozenset.intersection(*all_of)
    elif any_of := [*_listed(schema, "anyOf"), *_listed(schema, "oneOf")]:
        found = frozenset().union(*(_kinds(part, root, depth, known) or ANY for part in any_of))
    else:
        found = frozenset({"object"} if "properties" in schema else {"array"} if "items" in schema else ())
    return found | {"null"} if found and schema.get("nullable") is True else found  # OpenAPI's word


def _listed(schema: Mapping[str, Any], word: str) -> list[Any]:
    listed = schema.get(word)
    return listed if isinstance(listed, list) else []


def _referred(schema: Mapping[str, Any], root: object) -> object:
    """What a `$ref` inside the same schema stands for; None for any other."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    at = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(at, Mapping) or step not in at:
            return None
        at = at[step]
    return at


def _kind_of(value: object) -> str:
    return _OF_VALUE.get(type(value), "null")


def may_be_other(text: str, said: Said) -> bool:
    """Whether a value that begins so may still be anything but this text, so that it has to wait for its end."""
    if not said.free or said.kinds not in (TEXT, NULLABLE):
        return True
    if said.kinds == TEXT:
        return False
    bare = text.strip()
    return len(text) <= 2 * len("null") and any(word.startswith(bare) for word in _NULLS)


def as_json(text: str, of: Said) -> str:
    """The JSON of a whole value: the text itself where it is of none of the other types that it may have.

    JSON is handed on as it was written.
    """
    said, bare, is_text = of.kinds, text.strip(), "string" in of.kinds
    if bare in _NULLS and ("null" in said or not is_text):
        return "null"
    if "boolean" in said and bare in _BOOLEANS:
        return _BOOLEANS[bare]
    number = _NUMBER.fullmatch(bare)
    if number is not None:
        whole = number["fraction"] is None and number["power"] is None
        if "number" in said or ("integer" in said and (whole or not is_text)):
            return bare
    if bare[:1] in ("{", "["):
        kind = "object" if bare[0] == "{" else "array"
        if kind in said or not is_text:
            found = _structure(bare)
            if found is not None:
                return found
    if bare[:1] == '"' and not is_text:  # an object or an array inside a string
        inner = _parsed(bare)
        if isinstance(inner, str) and inner.strip()[:1] in ("{", "["):
            found = _structure(inner.strip())
            if found is not None:
                return found
    return json.dumps(of.own(text), ensure_ascii=False)


def _structure(text: str) -> str | None:
    """An object or array in JSON; None where the text is none in Python's notation either."""
    if _parsed(text) is not None:
        return text
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            value = ast.literal_eval(text)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return written if isinstance(value, dict | list) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refused, parse_int=float)  # int() refuses thousands of digits
    except (ValueError, RecursionError):
        return None


def _refused(word: str) -> None:
    raise ValueError(word)
