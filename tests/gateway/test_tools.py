"""Tool calls from a client to a line of tokens and back, for every format, by the official client as users have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.gateway.harness import MODEL, SPEC, Gateway, gateway
from tests.gateway.text.calls.templates import LISTS_NONE, TEMPLATES
from tests.gateway.text.calls.test_parser import (
    BEGIN,
    BEGINS,
    END,
    ENDS,
    SECTION,
    SECTION_END,
    SEP,
    V4_SECTION,
    V4_SECTION_END,
    coder,
    dsml,
    glm4,
    glm45,
    hermes,
    llama,
    v3,
    v31,
)
from tests.lines.line_double import Script

from twinline.gateway.judging import traits_of

HI: Any = [{"role": "user", "content": "hi"}]
ARGUMENTS = '{"city": "東京", "note": "a \\"b\\" </tool_call>"}'
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "It tells.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "search")
]
THINK = "Hm. <tool_call> no.\n</think>\n\n"
# What the model says for one call and for two; R1's prompt has opened its reasoning.
SAYS = {
    "r1": (f"{THINK}{BEGINS}{v3('weather', ARGUMENTS)}{ENDS}",
           f"{THINK}{BEGINS}{v3('weather', ARGUMENTS)}\n{v3('search', '{}')}{ENDS}"),
    "v31": (f"{BEGINS}{v31('weather', ARGUMENTS)}{ENDS}",
            f"{BEGINS}{v31('weather', ARGUMENTS)}{v31('search', '{}')}{ENDS}"),
    "qwen3": (f"<think>\n{THINK}{hermes('weather', ARGUMENTS)}",
              f"<think>\n{THINK}{hermes('weather', ARGUMENTS)}\n{hermes('search', '{}')}"),
    "llama3": (llama("weather", ARGUMENTS),
               f"<|python_tag|>{llama('weather', ARGUMENTS)}; {llama('search', '{}')}"),
    "coder": (coder("weather", ARGUMENTS), f"{coder('weather', ARGUMENTS)}\n{coder('search', '{}')}"),
    "glm45": (f"\n<think>{THINK}{glm45('weather', ARGUMENTS)}",
              f"\n<think>{THINK}{glm45('weather', ARGUMENTS)}\n{glm45('search', '{}')}"),
    "glm4": (glm4("weather", ARGUMENTS), f"{glm4('weather', ARGUMENTS)}<|assistant|>{glm4('search', '{}')}"),
    "ernie": (f"{THINK}{hermes('weather', ARGUMENTS)}",
              f"{THINK}{hermes('weather', ARGUMENTS)}\n{hermes('search', '{}')}"),
    "v32": (f"\n\n{SECTION}\n{dsml('weather', ARGUMENTS)}\n{SECTION_END}",
            f"\n\n{SECTION}\n{dsml('weather', ARGUMENTS)}\n{dsml('search', '{}')}\n{SECTION_END}"),
    "v4": (f"\n\n{V4_SECTION}\n{dsml('weather', ARGUMENTS)}\n{V4_SECTION_END}",
           f"\n\n{V4_SECTION}\n{dsml('weather', ARGUMENTS)}\n{dsml('search', '{}')}\n{V4_SECTION_END}"),
}  # fmt: skip
# Marks that are one token, and whether the vocabulary calls them special: then a reader must ask for their text.
MARKS = {
    "r1": dict.fromkeys((BEGINS, ENDS, BEGIN, END, SEP), True),
    "v31": dict.fromkeys((BEGINS, ENDS, BEGIN, END, SEP), True),
    "qwen3": {"<tool_call>": False, "</tool_call>": False, "<|im_start|>": True, "<|im_end|>": True},
    "llama3": {"<|python_tag|>": True, "<|eot_id|>": True},
    "coder": {"<tool_call>": False, "</tool_call>": False, "<|im_start|>": True, "<|im_end|>": True},
    "glm45": dict.fromkeys(
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"), True
    ),
    "glm4": dict.fromkeys(("<|assistant|>", "<|observation|>", "<|user|>"), True),
    "v32": {"｜DSML｜": True},
    "v4": {"｜DSML｜": True},
    "ernie": dict.fromkeys(("<tool_call>", "</tool_call>", "<response>", "</response>", "<|im_end|>"), False),
}


def folder_of(family: str, tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES[family], "utf-8")
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text("utf-8"))
    first = len(definition["model"]["vocab"])
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition["added_tokens"] += [
        {"id": first + number, "content": mark, "special": special, **added}
        for number, (mark, special) in enumerate(MARKS[family].items())
    ]
    path.write_text(json.dumps(definition), "utf-8")
    return folder


class Family:
    def __init__(self, name: str, door: Gateway) -> None:
        self.name, self.door = name, door
        self.one, self.two = SAYS[name]
        http = openai.DefaultHttpxClient(trust_env=False)
        self.client = openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, http_client=http)

    def ask(self, **fields: Any) -> Any:
        return self.client.chat.completions.create(model=MODEL, **{"messages": HI, "tools": TOOLS} | fields)

    def prompt(self) -> str:
        return self.door.tokenizer.decode(self.door.asked()["prompt"], skip_special=False)


def ran(name: str, tiny: Path, folder: Path) -> Iterator[Family]:
    with gateway(folder_of(name, tiny, folder / name), replace(SPEC, context=8192)) as made:
        yield Family(name, made)


@pytest.fixture(scope="module", params=TEMPLATES)
def each(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    yield from ran(request.param, tiny_folder, tmp_path_factory.mktemp("tools"))


@pytest.fixture
def family(each: Family) -> Family:
    each.door.double.requests.clear()
    each.door.renew()
    return each


def told(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def test_trap_30_calls_between_special_tokens_round_trip(family: Family) -> None:
    """A call comes whole, goes back with its result, and stands in the next prompt as the model wrote it."""
    family.door.says(family.one)
    choice = family.ask().choices[0]
    assert told(choice.message) == [("weather", ARGUMENTS)] and choice.finish_reason == "tool_calls"
    assert choice.message.content is None and choice.message.tool_calls[0].type == "function"
    told_of = family.prompt().count("It tells.")
    assert told_of == 2, family.prompt()
    assert ("## Tools\nYou have access" in family.prompt()) == (family.name in LISTS_NONE)
    told_how = {name: call("tool_call_name", "tool_call_arguments") for name, call in (("r1", v3), ("v31", v31))}
    assert [name for name, how in told_how.items() if how in family.prompt()] == [family.name] * (
        family.name in LISTS_NONE
    )
    if family.name in ("r1", "qwen3"):
        assert choice.message.reasoning_content == "Hm. <tool_call> no."
    family.door.says("Rain.")
    result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "wet"}
    again = family.ask(messages=[*HI, choice.message, result]).choices[0]
    assert (again.message.content, again.message.tool_calls, again.finish_reason) == ("Rain.", None, "stop")
    without_reasoning = family.one.split("</think>\n\n")[-1]
    assert without_reasoning in family.prompt() and "wet" in family.prompt()


@pytest.mark.parametrize("each", ["v31", "qwen3"], indirect=True)
def test_trap_29_a_request_turns_thinking_on_and_off(family: Family) -> None:
    """By the template's own switch or by a field, at /tokenize, too, and in a request of a form that is known; and the
    answer is read as the prompt's end wants it."""
    switch = {"v31": "thinking", "qwen3": "enable_thinking"}[family.name]
    for thinks, effort in ((True, "high"), (False, "none")):
        vendors = {"thinking": {"type": "enabled" if thinks else "disabled"}}, {"enable_thinking": thinks}
        by_name = {"chat_template_kwargs": {switch: thinks}}
        for told_by in (
            {"reasoning_effort": effort},
            *({"extra_body": body} for body in (by_name, *vendors)),
            *({"extra_body": body, "reasoning_effort": "none" if thinks else "high"} for body in vendors),
        ):
            opened = "<think>\n" if family.name == "qwen3" else ""
            family.door.says(f"{opened}Hm.\n</think>\n\nSo." if thinks else "So.")
            for _ in range(2):
                message = family.ask(tools=openai.NOT_GIVEN, **told_by).choices[0].message
                assert family.prompt().rstrip().endswith("</think>") != thinks
                said = getattr(message, "reasoning_content", None) or ""
                assert (said, message.content) == ("Hm." if thinks else "", "So.")
            fields = {name: value for name, value in told_by.items() if name != "extra_body"}
            fields |= told_by.get("extra_body", {})
            counted = family.door.client.post("/tokenize", json={"model": MODEL, "messages": HI, **fields}).json()
            assert counted["tokens"] == family.door.asked()["prompt"]


def test_streamed_as_deltas(family: Family) -> None:
    family.door.says(family.two)
    chunks = list(family.ask(stream=True, stream_options={"include_usage": True}))
    deltas = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or ()]
    assert all(len(chunk.choices[0].delta.tool_calls or ()) < 2 for chunk in chunks if chunk.choices)
    assert [call.function.name for call in deltas if call.id] == ["weather", "search"]
    joined = ["".join(call.function.arguments for call in deltas if call.index == index) for index in (0, 1)]
    assert joined == [ARGUMENTS, "{}"] and len(deltas) > 8  # piece by piece
    assert deltas[0].id and deltas[0].type == "function" and not deltas[0].function.arguments
    assert {call.id for call in deltas if call.id} != {None} and deltas[1].id is None
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ""
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens == len(family.door.tokenizer.encode(family.two, special=False)) + 1


def test_tags_around_an_answer_are_dropped_where_the_vocabulary_has_them(family: Family) -> None:
    family.door.says("<think>\nHm.\n</think>\n\n<response>\nRain.\n</response>\n")
    message = family.ask().choices[0].message
    expected = "Rain." if family.name == "ernie" else "<response>\nRain.\n</response>\n"
    assert (message.reasoning_content, message.content) == ("Hm.", expected)


def test_the_clients_own_stream_helper(family: Family) -> None:
    family.door.says(family.two, per_chunk=7)
    with family.client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS) as stream:
        final = stream.get_final_completion().choices[0]
    assert told(final.message) == [("weather", ARGUMENTS), ("search", "{}")] and final.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_tool_calls_may_be_forbidden(family: Family, stream: bool) -> None:
    family.door.says(family.two)
    answer = family.ask(stream=stream, parallel_tool_calls=False)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        assert {call.index for chunk in chunks for call in chunk.delta.tool_calls or ()} == {0}
        assert chunks[-1].finish_reason == "tool_calls"
    else:
        assert told(answer.choices[0].message) == [("weather", ARGUMENTS)]
        assert answer.choices[0].finish_reason == "tool_calls"
    family.door.until(lambda: family.door.double.active == 0)


def test_a_stream_that_moves_gives_the_same_calls(family: Family) -> None:
    """Wherever it breaks, in a mark, a name or a character: nothing is lost and nothing comes twice."""
    door = family.door
    tokens = [*door.tokenizer.encode(family.two, special=False), *door.tokenizer.eos_ids]

    def script(request: dict[str, Any]) -> Script:
        cut = next(cuts, None)
        return Script(tokens, fault=None if cut is None else "end", fault_after=cut or 0)

    door.double.script = script
    last = len(tokens) - 1
    for step in (3, 7, last // 2, last):
        cuts = iter([step] * min(3, last // step))
        door.renew()
        door.double.requests.clear()
        choice = family.ask().choices[0]
        assert len(door.double.requests) == 1 + min(3, last // step)
        assert told(choice.message) == [("weather", ARGUMENTS), ("search", "{}")]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None


def test_what_is_no_call(family: Family) -> None:
    """An unknown name, and a call that ends with the limit of tokens."""
    unknown = family.one.replace("weather", "nobody")
    family.door.says(unknown)
    choice = family.ask().choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason == "stop"
    assert choice.message.content == unknown.split("</think>\n\n")[-1]
    family.door.says(family.one)
    cut = family.one[: family.one.index("note")]
    choice = family.ask(max_tokens=len(family.door.tokenizer.encode(cut, special=False))).choices[0]
    ((name, arguments),) = told(choice.message)
    assert name == "weather" and ARGUMENTS.startswith(arguments) and choice.finish_reason == "length"


def test_tool_choice_none(family: Family) -> None:
    """The model is not told of the tools; if it calls one, that is text."""
    family.door.says(family.one)
    choice = family.ask(tool_choice="none").choices[0]
    assert choice.message.tool_calls is None and "weather" in choice.message.content
    assert "It tells." not in family.prompt()


NAMED = {"type": "function", "function": {"name": "weather"}}
# Where the answer begins, by the prompt's end: behind the reasoning that it opens, at once, or as the model likes.
AROUND = {
    "r1": {"after": "</think>", "opener": ""},
    "v31": {"after": "", "opener": ""},
    "qwen3": {"after": "</think>", "opener": "<think>"},
    "llama3": {"after": "</think>", "opener": "<think>"},
    "coder": {"after": "</think>", "opener": "<think>"},
    "glm45": {"after": "</think>", "opener": "<think>"},
    "glm4": {"after": "</think>", "opener": "<think>"},
    "v32": {"after": "", "opener": ""},
    "v4": {"after": "", "opener": ""},
    "ernie": {"after": "</think>", "opener": ""},
}


def test_a_call_that_must_be_made(family: Family) -> None:
    family.door.says(family.one)
    for choice, names in (("required", ["weather", "search"]), (NAMED, ["weather"])):
        answer = family.ask(tool_choice=choice).choices[0]
        assert told(answer.message) == [("weather", ARGUMENTS)] and answer.finish_reason == "tool_calls"
        grammar = family.door.asked()["grammar"]
        assert grammar.items() >= ({"kind": "structural_tag"} | AROUND[family.name]).items()
        said = json.loads(grammar["text"])["format"]["elements"]
        (calls,) = [element for element in said if element["type"] == "tags_with_separator"]
        assert len(calls["tags"]) == len(names) and calls["stop_after_first"] == (choice is NAMED)
        for tag, name in zip(calls["tags"], names, strict=True):
            assert name in tag["begin"] and tag["content"]["json_schema"]["type"] == "object"
    family.ask(tool_choice="auto")
    assert family.door.asked().get("grammar") is None


SKY: Any = {"type": "object", "properties": {"sky": {"type": "string"}}, "required": ["sky"]}


def test_tools_and_a_form_of_the_answer(family: Family) -> None:
    """As agents with a typed result ask: a call is no answer and has its own form; where one must be made, there is no
    answer that could have another."""
    family.door.says(family.one)
    form: Any = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SKY}}
    answer = family.ask(response_format=form).choices[0]
    assert told(answer.message) == [("weather", ARGUMENTS)]
    grammar = family.door.asked()["grammar"]
    assert grammar.items() >= ({"kind": "structural_tag"} | AROUND[family.name]).items()
    either = json.loads(grammar["text"])["format"]["elements"][-1]
    assert either["type"] == "or" and either["elements"][0]["json_schema"] == SKY
    (calls,) = [part for part in either["elements"][1]["elements"] if part["type"] == "tags_with_separator"]
    assert len(calls["tags"]) == 2
    family.ask(tool_choice="required")
    forced = family.door.asked()["grammar"]
    family.ask(tool_choice="required", response_format=form)
    assert family.door.asked()["grammar"] == forced
    family.ask(tool_choice="none", response_format=form)
    assert family.door.asked()["grammar"]["kind"] == "json_schema"


def test_a_call_that_must_be_made_and_a_pattern_of_the_answer(family: Family) -> None:
    with pytest.raises(openai.BadRequestError, match="exclude each other") as refused:
        family.ask(tool_choice="required", extra_body={"guided_regex": "a+"})
    assert refused.value.param == "tool_choice"
    with pytest.raises(openai.BadRequestError, match="not JSON"):
        family.ask(response_format={"type": "json_schema", "json_schema": {"name": "sky", "schema": "{"}})
    with pytest.raises(openai.BadRequestError, match="too deep"):
        family.ask(extra_body={"guided_json": '{"items":' * 20_000 + "{}" + "}" * 20_000})


def test_a_call_that_must_be_made_needs_a_line_that_can(family: Family) -> None:
    async def say(facts: Any) -> None:
        family.door.line.declare(family.door.line.spec, facts)
        family.door.supply.router.update(traits_of(family.door.line))

    before = family.door.line.facts
    family.door.do(say({"lacks": ["grammar", "patterns"]}))
    try:
        with pytest.raises(openai.BadRequestError, match="line double lacks tool_choice") as refused:
            family.ask(tool_choice="required")
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tool_choice")
        family.door.says(family.one)
        assert told(family.ask().choices[0].message) == [("weather", ARGUMENTS)]  # those it makes by itself need none
    finally:
        family.door.do(say(before))


@pytest.fixture(scope="module")
def v31_door(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    for family in ran("v31", tiny_folder, tmp_path_factory.mktemp("tools")):
        yield family.door


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [*TOOLS, {"type": "web_search"}]}, "tools[2]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": 5}}]}, "tools[0]"),
        ({"tools": TOOLS * 600}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages"),
    ],
)
def test_a_wrong_field_is_named(v31_door: Gateway, fields: dict[str, Any], param: str) -> None:
    response: httpx.Response = v31_door.chat(**fields)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text
