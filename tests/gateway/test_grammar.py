"""Structured output at the door: what a line is asked for, which lines are asked, and where an answer may go on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.harness import Gateway
from tests.lines.line_double import Script

from twinline.gateway.api_types import CompletionRequest
from twinline.gateway.errors import ApiError
from twinline.gateway.grammar import MOST_CHOICES, grammar_of
from twinline.gateway.judging import traits_of
from twinline.gateway.routing import Ask
from twinline.gateway.segment import resumed
from twinline.gateway.text.reasoning import around_answer

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é"]}}}
AFTER = {"after": "</think>", "opener": ""}  # tiny-r1's template opens the reasoning


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
         "json_schema", json.dumps(SCHEMA, ensure_ascii=False)),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA, ensure_ascii=False)),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"'),
        ({"guided_choice": ["a", 'q"\\', "\n\x7fé"]}, "ebnf", r'root ::= "a" | "q\"\\" | "\u000a\u007fé"'),
        ({"structured_outputs": {"json": SCHEMA, "disable_fallback": True}}, "json_schema",
         json.dumps(SCHEMA, ensure_ascii=False)),
        ({"structured_outputs": {"json_object": True, "regex": None}}, "json_schema", '{"type": "object"}'),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "ebnf", 'root ::= "yes" | "no"'),
        ({"structured_outputs": {"structural_tag": {"type": "structural_tag"}}}, "structural_tag",
         '{"type": "structural_tag"}'),
    ],
)  # fmt: skip
def test_what_a_line_is_asked_for(door: Gateway, fields: dict[str, Any], kind: str, text: str) -> None:
    door.says("x")
    assert door.chat(**fields).status_code == 200
    assert door.asked()["grammar"] == {"kind": kind, "text": text} | AFTER
    assert door.complete(**fields).status_code == 200
    assert door.asked()["grammar"] == {"kind": kind, "text": text, "after": "", "opener": ""}


def test_no_grammar_unless_asked(door: Gateway) -> None:
    door.says("x")
    assert door.chat(response_format={"type": "text"}, guided_json=None).status_code == 200
    assert door.asked().get("grammar") is None


def test_a_lines_refusal_of_a_grammar_is_the_clients(door: Gateway) -> None:
    error = {"message": "schema #: not is not supported", "param": "grammar"}
    door.double.script = lambda request: Script(fault="refuse", status=400, error=error)
    response = door.chat(response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}})
    assert (response.status_code, response.json()["error"]["message"]) == (400, "schema #: not is not supported")


def test_a_line_without_grammars_is_not_asked(door: Gateway) -> None:
    before, asked = door.line.facts, len(door.double.requests)

    async def say(facts: Any) -> None:
        door.line.declare(door.line.spec, facts)
        door.supply.router.update(traits_of(door.line))

    door.do(say({"lacks": ["grammar", "patterns"]}))
    try:
        error = door.chat(response_format={"type": "json_object"}).json()["error"]
        assert (error["param"], error["code"]) == ("response_format", "unsupported_parameter")
        error = door.chat(guided_regex="a").json()["error"]
        assert (error["param"], error["code"]) == ("response_format", "unsupported_parameter")
        assert len(door.double.requests) == asked
    finally:
        door.do(say(before))


def test_it_goes_on_only_where_what_was_said_counts() -> None:
    """vLLM would begin the grammar anew in the middle of an answer."""
    ask = Ask(prompt_tokens=3, keys=(), output_tokens=9, needs=frozenset({"grammar"}), context=12, key="")
    assert resumed(ask, 3, 2, ()).needs == {"grammar", "token_ids", "exact"}
    plain = Ask(prompt_tokens=3, keys=(), output_tokens=9, needs=frozenset(), context=12, key="")
    assert resumed(plain, 3, 2, ()).needs == {"token_ids"}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("<|User|>hi<|Assistant|><think>\n", ("</think>", "")),
        ("<|User|>hi<|Assistant|></think>", ("", "")),
        ("hi<think>\n\n</think>\n\n", ("", "")),
        ("<|User|>hi<|Assistant|>", ("</think>", "<think>")),
    ],
)
def test_where_an_answer_begins(prompt: str, found: tuple[str, str]) -> None:
    assert around_answer(prompt) == found


def test_bounds() -> None:
    request = CompletionRequest(model="m", prompt="x", guided_choice=["a"] * (MOST_CHOICES + 1))
    with pytest.raises(ApiError, match="at most"):
        grammar_of(request, ("", ""))
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ApiError, match="nested too deep"):
        grammar_of(CompletionRequest(model="m", prompt="x", guided_json=deep), ("", ""))
