"""Which grammar a client asks for: OpenAI's `response_format`, and the fields that vLLM's users know.

Owns these fields' meanings, and what a line must have for them. Whether a schema or a pattern is one is for the line to
say, which compiles it; must not know how.
"""

from __future__ import annotations

import json
from typing import Any

from twinline.gateway.api_types import Common
from twinline.gateway.errors import ApiError, bad_request
from twinline.lines.protocol import Grammar

OPENAI = frozenset({"grammar"})
OTHERS = frozenset({"grammar", "patterns"})  # a line that takes text is sent OpenAI's fields alone
NOTHING: frozenset[str] = frozenset()
ANY_OBJECT = '{"type": "object"}'
MOST_CHOICES = 10_000
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
_STRUCTURED = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_HARMLESS = frozenset({"disable_fallback", "_backend", "backend"})  # of vLLM's fields: which of its compilers


def grammar_of(request: Common, around_answer: tuple[str, str]) -> tuple[Grammar | None, frozenset[str]]:
    """What the request's answer is held to, and the features that it needs of a line.

    `around_answer`: where in the output the answer begins (`text.reasoning`). Raises ApiError 400.
    """
    if (
        request.response_format is None and request.structured_outputs is None and request.guided_json is None
        and request.guided_regex is None and request.guided_choice is None and request.guided_grammar is None
    ):  # fmt: skip
        return None, NOTHING
    asked = [*_response_format(request), *_guided(request), *_structured_outputs(request)]
    if not asked:
        return None, NOTHING
    if len(asked) > 1:
        raise bad_request(f"{asked[0][0]} and {asked[1][0]} exclude each other.", asked[1][0])
    field, kind, value = asked[0]
    try:
        said, text = _text(kind, value, field)
    except RecursionError:
        raise bad_request(f"{field} is nested too deep.", field) from None
    after, opener = around_answer
    return Grammar(said, text, after, opener), OPENAI if field == "response_format" else OTHERS


def _response_format(request: Common) -> list[tuple[str, str, Any]]:
    format_ = request.response_format
    match format_.type if format_ is not None else "text":
        case "text":
            return []
        case "json_object":
            return [("response_format", "json_object", True)]
        case "json_schema":
            schema = None if format_ is None or format_.json_schema is None else format_.json_schema.schema
            if schema is None:
                raise bad_request("response_format of type json_schema needs json_schema.schema.", "response_format")
            return [("response_format", "json", schema)]
    kinds = "text, json_object and json_schema"
    raise ApiError(
        400, f"response_format may be of type {kinds}.", param="response_format", code="unsupported_parameter"
    )


def _guided(request: Common) -> list[tuple[str, str, Any]]:
    return [(name, kind, value) for name, kind in _GUIDED.items() if (value := getattr(request, name)) is not None]


def _structured_outputs(request: Common) -> list[tuple[str, str, Any]]:
    given = request.structured_outputs
    if given is None:
        return []
    if not isinstance(given, dict):
        raise bad_request("structured_outputs must be an object.", "structured_outputs")
    kinds = [name for name in given if given[name] is not None and given[name] is not False and name not in _HARMLESS]
    if unknown := [name for name in kinds if name not in _STRUCTURED]:
        raise ApiError(
            400,
            f"structured_outputs.{unknown[0]:.40} is not supported.",
            param="structured_outputs",
            code="unsupported_parameter",
        )
    if len(kinds) != 1:
        raise bad_request(f"structured_outputs needs one of {', '.join(_STRUCTURED)}.", "structured_outputs")
    return [("structured_outputs", kinds[0], given[kinds[0]])]


def _text(kind: str, value: Any, field: str) -> tuple[str, str]:
    """The line protocol's kind and text."""
    if kind == "json_object":
        return "json_schema", ANY_OBJECT
    if kind == "choice":
        return "ebnf", "root ::= " + " | ".join(_quoted(choice) for choice in _choices(value, field))
    if kind in ("json", "structural_tag") and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str) or not value:
        raise bad_request(f"{field}: {kind} must be a text that is not empty.", field)
    return {"json": "json_schema", "grammar": "ebnf"}.get(kind, kind), value


def _choices(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise bad_request(f"{field} must be a list of texts, none of them empty.", field)
    if len(value) > MOST_CHOICES:
        raise bad_request(f"{field} has {len(value)} choices, at most {MOST_CHOICES} are allowed.", field)
    return value


def _quoted(choice: str) -> str:
    """As an EBNF literal."""
    return '"' + "".join(_letter(c) for c in choice) + '"'


def _letter(c: str) -> str:
    if ord(c) < 32 or ord(c) == 127:
        return f"\\u{ord(c):04x}"  # xgrammar reads all hexadecimal digits behind an `\\x` as its own
    return "\\" + c if c in '"\\' else c
