"""A JSON schema as one that the grammar compiler obeys to the letter, or a refusal that names what it would not obey.

Owns what may stand in a schema. xgrammar ignores keywords that it does not know, and those beside `$ref`, `enum`,
`anyOf` and the like, so that answers would not validate: whatever it would ignore is refused here, or rewritten where
something it obeys means the same (read in xgrammar 0.2's cpp/json_schema_converter.cc, `SchemaParser::Parse`).

Two readings are narrower than the standard's, and valid by it: an object that lists `properties` and says nothing of
`additionalProperties` has no others, and properties come in the order in which they are listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from twinline.engine.grammars.disjoint import apart
from twinline.engine.grammars.formats import FORMATS
from twinline.engine.grammars.grammar import BadGrammar
from twinline.engine.grammars.pattern import MOST_UNROLLED, json_length, json_pattern
from twinline.engine.grammars.stand_ins import StandIns

DEEPEST = 64
MOST_PARTS = 20_000
MOST_REPEATS = 10_000  # of a string's characters, an array's items or an object's properties
LARGEST_DIVISOR = 100
WIDEST_RANGE = 10_000  # in which multiples are listed one by one

_ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly $comment $schema $id $defs definitions "
    "discriminator contentEncoding contentMediaType contentSchema".split()
)
_NEVER = frozenset(
    "not if then else dependentRequired dependentSchemas dependencies contains minContains maxContains uniqueItems "
    "unevaluatedItems additionalItems $dynamicRef $recursiveRef $anchor $dynamicAnchor".split()
)
_OF_TYPE = {
    "object": frozenset(
        "properties required additionalProperties unevaluatedProperties patternProperties propertyNames minProperties "
        "maxProperties".split()
    ),
    "array": frozenset("items prefixItems minItems maxItems".split()),
    "string": frozenset("minLength maxLength pattern format".split()),
    "integer": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()),
    "number": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_CONSTRAINTS = frozenset().union(*_OF_TYPE.values())
_ALONE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")  # each is read alone, in this order
_INT64 = 2**63
_PYTHON = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def strict_schema(text: str, stand_ins: StandIns) -> str:
    """The schema to compile, as JSON, with `stand_ins` for what xgrammar would write otherwise.

    Raises BadGrammar with the place and the keyword that is to blame.
    """
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadGrammar(f"the schema is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise BadGrammar(f"the schema is not JSON: {error}") from None
    return json.dumps(_Reading(schema, stand_ins).schema(schema, "#", 0), ensure_ascii=False)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(place: str, reason: str) -> NoReturn:
    raise BadGrammar(f"schema {place}: {reason}")


class _Reading:
    """One pass over a schema. `at` is a JSON pointer, for messages."""

    def __init__(self, root: Any, stand_ins: StandIns) -> None:
        self._root, self._stand_ins = root, stand_ins
        self._parts = 0

    def schema(self, schema: Any, at: str, depth: int) -> Any:
        self._parts += 1
        if depth > DEEPEST:
            raise BadGrammar(f"the schema is nested more than {DEEPEST} deep")
        if self._parts > MOST_PARTS:
            raise BadGrammar(f"the schema has more than {MOST_PARTS} parts")
        if schema is True:
            return {}
        if schema is False:
            _refuse(at, "false allows nothing")
        if not isinstance(schema, dict):
            _refuse(at, f"a schema is an object or true, not {json.dumps(schema)[:40]}")
        kept = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
        for name in kept:
            if name in _NEVER and not (name == "uniqueItems" and kept[name] is False):
                _refuse(at, f"{name} is not supported")
        said = {name: value for name, value in kept.items() if name in _CONSTRAINTS or name in _ALONE or name == "type"}
        made = self._read(said, at, depth + 1)
        for name in ("$defs", "definitions"):  # where references point
            if name in schema and depth == 0:
                defs = self._mapping(schema, name, at)
                made[name] = {key: self.schema(value, f"{at}/{name}/{key}", 1) for key, value in defs.items()}
        return made

    def _read(self, said: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        alone = next((name for name in _ALONE if name in said), None)
        if alone is None:
            return self._typed(said, at, depth)
        beside = said.keys() - {alone}
        if alone in ("const", "enum") and beside <= {"type"}:
            return self._values(said, alone, at)
        if alone == "allOf" and not beside and isinstance(said[alone], list) and len(said[alone]) == 1:
            return {"allOf": [self.schema(said[alone][0], f"{at}/allOf/0", depth)]}
        if alone == "allOf":
            _refuse(at, "allOf is supported with one schema and nothing beside it: write the schemas as one")
        if beside:
            _refuse(at, f"{', '.join(sorted(beside))} beside {alone} is not supported: put it into the other schema")
        if alone == "$ref":
            self._resolve(said["$ref"], at)
            return {"$ref": said["$ref"]}
        options = said[alone]
        if not isinstance(options, list) or not options:
            _refuse(at, f"{alone} must be a list of schemas")
        if alone == "oneOf" and not apart([self._followed(option, at) for option in options]):
            _refuse(at, "oneOf whose schemas may both fit is not supported: use anyOf, or give them types that differ "
                        "or a required property whose const or enum differs")  # fmt: skip
        return {"anyOf": [self.schema(option, f"{at}/{alone}/{i}", depth) for i, option in enumerate(options)]}

    def _values(self, said: dict[str, Any], name: str, at: str) -> dict[str, Any]:
        values = said[name] if name == "enum" else [said[name]]
        if not isinstance(values, list) or not values:
            _refuse(at, "enum must be a list with at least one value")
        self._parts += len(values)
        if self._parts > MOST_PARTS:
            raise BadGrammar(f"the schema has more than {MOST_PARTS} parts")
        types = self._types(said, at)
        fitting = [value for value in values if types is None or any(_is(value, kind) for kind in types)]
        if not fitting:
            _refuse(at, f"no value of {name} is of type {said['type']}")
        for value in fitting:
            _check_numbers(value, at)
        return {"enum": [self._stand_ins.value(value) for value in fitting]}

    def _types(self, said: Mapping[str, Any], at: str) -> list[str] | None:
        if "type" not in said:
            return None
        types = said["type"] if isinstance(said["type"], list) else [said["type"]]
        if not types or not all(isinstance(kind, str) and kind in _OF_TYPE for kind in types):
            _refuse(at, f"type must be of {', '.join(_OF_TYPE)}, not {json.dumps(said['type'])[:60]}")
        return types

    def _typed(self, said: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        types = self._types(said, at)
        if types is None:
            types = [kind for kind in ("object", "array") if said.keys() & _OF_TYPE[kind]]
            if not types and said:
                _refuse(at, f"{', '.join(sorted(said))} needs a type beside it")
            if not types:
                return {}
            if said.keys() - _OF_TYPE[types[0]]:
                _refuse(at, f"{', '.join(sorted(said))} need a type beside them")
        makers = {"object": self._object, "array": self._array, "string": self._string}
        made = []
        for kind in dict.fromkeys(types):
            own = {name: value for name, value in said.items() if name in _OF_TYPE[kind]}
            if kind in makers:
                own = makers[kind](own, at, depth)
            elif kind in ("integer", "number"):
                own = _number(own, kind, at)
            made.append({"type": kind} | own)
        return made[0] if len(made) == 1 else {"anyOf": made}

    def _object(self, own: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        properties = self._mapping(own, "properties", at)
        patterns = self._mapping(own, "patternProperties", at)
        required = own.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            _refuse(at, "required must be a list of names")
        others = own.get("additionalProperties", own.get("unevaluatedProperties"))
        if others is None:
            others = not properties and not patterns and "propertyNames" not in own
        opens = others is not False
        made: dict[str, Any] = {}
        if patterns or "propertyNames" in own:
            if properties or required or len(patterns) + ("propertyNames" in own) > 1 or (patterns and opens):
                _refuse(at, "patternProperties and propertyNames are supported alone: without properties, required and "
                            "additionalProperties, and with one pattern")  # fmt: skip
            if not patterns and "additionalProperties" in own and own["additionalProperties"] is not True:
                _refuse(at, "propertyNames is supported without additionalProperties")
            opens = True
        for pattern, schema in patterns.items():
            names = self._stand_ins.pattern(json_pattern(pattern, f"schema {at}/patternProperties"))
            made["patternProperties"] = {names: self.schema(schema, f"{at}/patternProperties/{pattern}", depth)}
        if "propertyNames" in own:
            names = own["propertyNames"]
            if not isinstance(names, dict):
                _refuse(at, "propertyNames must be a schema of strings")
            made["propertyNames"] = self.schema({"type": "string"} | names, f"{at}/propertyNames", depth)
        elif not patterns:
            listed = {name: self.schema(schema, f"{at}/properties/{name}", depth)
                      for name, schema in properties.items() if schema is not False}  # fmt: skip
            if unlisted := [name for name in required if name not in properties]:
                if own.get("additionalProperties", own.get("unevaluatedProperties")) is False:
                    _refuse(at, f"required names {unlisted[0]!r}, which is no property, and there may be no others")
                schema = others if isinstance(others, dict) else {}
                listed |= {name: self.schema(schema, f"{at}/properties/{name}", depth) for name in unlisted}
            forbidden = [name for name in properties if properties[name] is False]
            if forbidden and (opens or set(forbidden) & set(required)):
                _refuse(at, f"properties/{forbidden[0]} is false, and it is required or other properties are allowed")
            made["properties"] = listed
            made["required"] = list(dict.fromkeys(required))
            made["additionalProperties"] = self.schema(others, f"{at}/additionalProperties", depth) if opens else False
        least, most = _count(own, "minProperties", at), _count(own, "maxProperties", at)
        if least is not None and least > max(1, len(set(required))) and opens:
            _refuse(at, "minProperties above 1 is supported where the properties are listed and there are no others: a "
                        "name may come twice")  # fmt: skip
        if least:
            made["minProperties"] = least
        if most is not None:
            made["maxProperties"] = most
        return made

    def _array(self, own: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        prefix = own.get("prefixItems")
        if prefix is not None:
            if not isinstance(prefix, list):
                _refuse(at, "prefixItems must be a list of schemas")
            made["prefixItems"] = [self.schema(s, f"{at}/prefixItems/{i}", depth) for i, s in enumerate(prefix)]
        items = own.get("items", True)
        if isinstance(items, list):
            _refuse(at, "items must be one schema: a list of them is prefixItems")
        made["items"] = items if items is False else self.schema(items, f"{at}/items", depth)
        for name in ("minItems", "maxItems"):
            if (count := _count(own, name, at)) is not None:
                made[name] = count
        return made

    def _string(self, own: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        least, most = _count(own, "minLength", at) or 0, _count(own, "maxLength", at)
        texts = {"pattern": own["pattern"]} if "pattern" in own else {}
        if (known := FORMATS.get(str(own.get("format")))) is not None:
            texts["format"] = known
        if len(texts) > 1:
            _refuse(at, "of pattern and format only one is supported in a string")
        for name, text in texts.items():
            return {"pattern": self._stand_ins.pattern(json_pattern(text, f"schema {at}/{name}", least, most))}
        if max(least, most or 0) > MOST_UNROLLED:
            return {name: own[name] for name in ("minLength", "maxLength") if name in own}
        if not least and most is None:
            return {}
        return {"pattern": self._stand_ins.pattern(json_length(least, most))}

    def _mapping(self, said: Mapping[str, Any], name: str, at: str) -> dict[str, Any]:
        value = said.get(name, {})
        if not isinstance(value, dict):
            _refuse(at, f"{name} must be an object")
        return value

    def _resolve(self, uri: Any, at: str) -> Any:
        """What a reference points at, through others. Raises BadGrammar for one that leaves the schema or circles."""
        for _ in range(DEEPEST):
            if not isinstance(uri, str) or (uri != "#" and not uri.startswith("#/")) or "~" in uri or "%" in uri:
                _refuse(at, f"$ref must point into this schema, as #/$defs/name, not {json.dumps(uri)[:80]}")
            found = self._root
            for name in uri[2:].split("/") if uri != "#" else ():
                if not isinstance(found, dict) or name not in found:
                    _refuse(at, f"$ref {uri[:80]} points at nothing")
                found = found[name]
            if uri != "#" and uri.split("/")[1] not in ("$defs", "definitions"):
                _refuse(at, f"$ref must point at # or into $defs or definitions, not {uri[:80]}")
            if not isinstance(found, dict) or "$ref" not in found:
                return found
            uri = found["$ref"]
        _refuse(at, "$ref points at itself")

    def _followed(self, schema: Any, at: str) -> Any:
        return self._resolve(schema["$ref"], at) if isinstance(schema, dict) and "$ref" in schema else schema


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole or (kind == "number" and isinstance(value, float)))
    return isinstance(value, _PYTHON[kind])


def _check_numbers(value: Any, at: str) -> None:
    """A number that the compiler would round is no value that the schema allows."""
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        _refuse(at, f"{value:.3e} does not fit 64 bits")
    if isinstance(value, float) and value in (float("inf"), -float("inf")):
        _refuse(at, "a number does not fit 64 bits")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(part, at)


def _count(own: Mapping[str, Any], name: str, at: str) -> int | None:
    value = own.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_REPEATS:
        _refuse(at, f"{name} must be a whole number from 0 to {MOST_REPEATS}, not {json.dumps(value)[:40]}")
    return value


def _number(own: dict[str, Any], kind: str, at: str) -> dict[str, Any]:
    for name, value in own.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse(at, f"{name} must be a number, not {json.dumps(value)[:40]}")
        if not -_INT64 < value < _INT64:
            _refuse(at, f"{name} does not fit 64 bits")
    divisor = own.get("multipleOf")
    if divisor is not None:
        if kind == "number" or divisor != int(divisor) or not 0 < divisor <= LARGEST_DIVISOR:
            _refuse(at, f"multipleOf is supported for integers, as a whole number from 1 to {LARGEST_DIVISOR}")
        low = max((own[n] for n in ("minimum", "exclusiveMinimum") if n in own), default=None)
        high = min((own[n] for n in ("maximum", "exclusiveMaximum") if n in own), default=None)
        if (low is None) != (high is None) or (low is not None and high is not None and high - low > WIDEST_RANGE):
            _refuse(at, f"multipleOf is supported without bounds, or between two at most {WIDEST_RANGE} apart")
    return own
