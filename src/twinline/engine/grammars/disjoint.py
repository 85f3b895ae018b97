"""Whether at most one of several JSON schemas fits any value, as far as their types and fixed values show.

Owns this proof, which makes `oneOf` the same as `anyOf`. Says no where it cannot tell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

_ALL = frozenset({"object", "array", "string", "number", "boolean", "null"})


def apart(schemas: Sequence[Any]) -> bool:
    """True if no value can fit two of the schemas. References are followed already."""
    return len(schemas) <= 200 and all(_pair(a, b) for a, b in combinations(schemas, 2))


def _pair(a: Any, b: Any) -> bool:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return False
    if not _types(a) & _types(b):
        return True
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None and not values_a & values_b:
        return True
    if _types(a) == _types(b) == {"object"}:
        return any(_fixed_apart(a, b, name) for name in _required(a) & _required(b))
    return False


def _fixed_apart(a: dict[str, Any], b: dict[str, Any], name: str) -> bool:
    one, other = (_values(schema["properties"].get(name)) if isinstance(schema.get("properties"), dict) else None
                  for schema in (a, b))  # fmt: skip
    return one is not None and other is not None and not one & other


def _required(schema: dict[str, Any]) -> frozenset[str]:
    names = schema.get("required")
    return frozenset(n for n in names if isinstance(n, str)) if isinstance(names, list) else frozenset()


def _values(schema: Any) -> frozenset[str] | None:
    """The values that a schema lists, as JSON; None if it lists none."""
    if not isinstance(schema, dict):
        return None
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(listed, list):
        return None
    return frozenset(json.dumps(_plain(value), sort_keys=True) for value in listed)


def _plain(value: Any) -> Any:
    """1.0 is 1 in JSON Schema."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _types(schema: dict[str, Any]) -> frozenset[str]:
    """Which kinds of values may fit at all; an integer is a number."""
    said = schema.get("type")
    if said is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(values, list) and values:
            return frozenset(map(_type_of, values))
        return _ALL
    names = said if isinstance(said, list) else [said]
    return frozenset("number" if name == "integer" else str(name) for name in names)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    for kind, name in ((dict, "object"), (list, "array"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "number"
