"""The JSON schemas inside a structural tag: their strings come out as JSON.

Owns the walk to them. Unlike a schema that is asked for by itself, one of a tool is held to as far as xgrammar knows
its words; but a pattern, a length or a format never lets an answer through that is no JSON. Must not know tools.
"""

from __future__ import annotations

import json
from typing import Any

from twinline.engine.grammars.formats import FORMATS
from twinline.engine.grammars.grammar import BadGrammar
from twinline.engine.grammars.pattern import MOST_UNROLLED, json_length, json_pattern
from twinline.engine.grammars.stand_ins import StandIns

_SCHEMAS = ("properties", "$defs", "definitions", "dependentSchemas")
_VALUES = frozenset(("enum", "const", "default", "examples", "example"))


def tag_with(text: str, stand_ins: StandIns) -> str:
    """The tag with `stand_ins` in its schemas. Raises BadGrammar."""
    try:
        return json.dumps(_tags(json.loads(text), stand_ins), ensure_ascii=False)
    except RecursionError:
        raise BadGrammar("the structural tag is nested too deep") from None
    except ValueError as error:
        raise error if isinstance(error, BadGrammar) else BadGrammar(f"the tag is not JSON: {error}") from None


def _tags(node: Any, stand_ins: StandIns) -> Any:
    if isinstance(node, list):
        return [_tags(part, stand_ins) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "grammar":
        stand_ins.shared = True
    # Of the other styles a string may be no JSON. A tag of the older form has its schema beside `begin`.
    held = "json_schema" if node.get("type") == "json_schema" and node.get("style", "json") == "json" else "schema"
    if held in node and (held == "json_schema" or "begin" in node) and isinstance(node[held], dict):
        return {name: _schema(part, stand_ins) if name == held else part for name, part in node.items()}
    return {name: part if name == "json_schema" else _tags(part, stand_ins) for name, part in node.items()}


def _schema(node: Any, stand_ins: StandIns) -> Any:
    if isinstance(node, list):
        return [_schema(part, stand_ins) for part in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for name, part in node.items():
        if name in _VALUES:
            made[name] = stand_ins.value(part)
        elif name in _SCHEMAS and isinstance(part, dict):
            made[name] = {key: _schema(schema, stand_ins) for key, schema in part.items()}
        elif name == "patternProperties" and isinstance(part, dict):
            made[name] = {stand_ins.pattern(json_pattern(key, name)): _schema(schema, stand_ins)
                          for key, schema in part.items()}  # fmt: skip
        else:
            made[name] = _schema(part, stand_ins)
    return _string(_with_options(made), stand_ins)


def _with_options(made: dict[str, Any]) -> dict[str, Any]:
    """Of `properties` beside options of what is required, xgrammar reads the options alone: each is made whole."""
    for name in ("anyOf", "oneOf"):
        options = made.get(name)
        if "properties" not in made or not isinstance(options, list) or not options:
            continue
        if all(isinstance(o, dict) and o.keys() == {"required"} and isinstance(o["required"], list) for o in options):
            defs = {key: made[key] for key in ("$defs", "definitions") if key in made}
            rest = {key: part for key, part in made.items() if key != name and key not in defs}
            always = rest.get("required", [])
            return defs | {"anyOf": [rest | {"required": [*always, *option["required"]]} for option in options]}
    return made


def _string(made: dict[str, Any], stand_ins: StandIns) -> dict[str, Any]:
    """Of several that limit a string xgrammar keeps to one: a format, a pattern, or a length."""
    known = FORMATS.get(str(made.pop("format", None)))
    if known is not None or "pattern" in made:
        return made | {"pattern": stand_ins.pattern(json_pattern(known or made["pattern"], "pattern"))}
    counts = [made[name] for name in ("minLength", "maxLength") if name in made]
    if counts and all(type(count) is int and 0 <= count <= MOST_UNROLLED for count in counts):
        length = json_length(made.pop("minLength", 0), made.pop("maxLength", None))
        return made | {"pattern": stand_ins.pattern(length)}
    return made
