from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.text.calls.templates import (
    CODER,
    GLM4,
    GLM45,
    LISTS_NONE,
    LLAMA3,
    QWEN3,
    R1,
    TEMPLATES,
    V4,
    V31,
    V32,
)

from twinline.gateway.text.calls.formats import GLM47, detect
from twinline.gateway.text.calls.history import HistoryStyle
from twinline.gateway.text.reasoning import ReasoningParser
from twinline.gateway.text.template import ChatTemplate

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ARGUMENTS = '{"city": "東京", "days": 2}'
HI = {"role": "user", "content": "hi"}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "晴"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<B>", "eos_token": "<E>"})


def called(arguments: object = ARGUMENTS, content: str | None = None, times: int = 1) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call] * times}


def test_formats_are_known_by_their_templates() -> None:
    found = {name: detect([source]) for name, source in TEMPLATES.items()}
    assert {name: format_.name for name, format_ in found.items() if format_} == {
        "r1": "deepseek_v3",
        "v31": "deepseek_v31",
        "qwen3": "hermes",
        "llama3": "llama3",
        "coder": "qwen3_coder",
        "glm45": "glm45",
        "glm4": "glm4",
        "v32": "deepseek_v32",
        "v4": "deepseek_v4",
        "ernie": "hermes",
    }
    assert detect([]) is None and detect(["{{ messages }}"]) is None
    assert detect(["plain", QWEN3]) is not None  # a template of its own for tools
    assert detect([GLM45.replace("</arg_key>\\n<arg_value>", "</arg_key><arg_value>")]) is GLM47
    assert detect(["<tool_call>name<arg_key>arguments"]) is None  # not JSON, and not GLM's
    assert detect(["<tool_call>name<tool_sep><arg_key>arguments</arg_key><arg_value>"]) is None
    assert detect(["<seed:tool_call><function=f><parameter=p>arguments"]) is None
    assert detect(["[gMASK]<sop>{{ messages }}"]) is None


ONE_BY_ONE = {"coder", "glm45", "v32", "v4"}  # arguments
EXPECTED = {
    "r1": "<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    f"```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><E><｜tool▁output▁begin｜>晴",
    "v31": "<｜Assistant｜></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜><E><｜tool▁output▁begin｜>晴",
    "qwen3": f'assistant\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call><|im_end|>\n',
    "ernie": f'assistant\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call><|im_end|>\n',
    "coder": "assistant\n<tool_call>\n<function=weather>\n<parameter=city>\n東京\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call><|im_end|>\n",
    "glm45": "<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>東京</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call><|observation|>\n<tool_response>\n晴",
    "glm4": f"<|assistant|>weather\n{ARGUMENTS}<|observation|>\n晴",
    "v32": '</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">東京</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls><E>\n\n<function_results>\n<result>晴",
    "v4": '<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">東京</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls><E><｜User｜><tool_result>晴",
    "llama3": f'assistant<|end_header_id|>\n\n{{"name": "weather", "parameters": {ARGUMENTS}}}<|eot_id|>',
}


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("arguments", [ARGUMENTS, json.loads(ARGUMENTS)], ids=["text", "object"])
@pytest.mark.parametrize("content", [None, ""])
def test_calls_of_earlier_turns(family: str, arguments: object, content: str | None) -> None:
    """However a client sends them, they stand in the prompt as the model wrote them."""
    message = called(arguments, content)
    message["tool_calls"][0].pop("type")
    rendered = template(TEMPLATES[family]).render([HI, message, RESULT])
    assert EXPECTED[family] in rendered


@pytest.mark.parametrize("family", ["r1", "v31", "qwen3"])
def test_half_a_surrogate_pair_in_arguments_is_no_text_of_a_prompt(family: str) -> None:
    """JSON can say it, and no tokenizer takes it."""
    rendered = template(TEMPLATES[family]).render([HI, called('{"city": "\\ud800"}'), RESULT])
    assert '{"city": "\\ud800"}' in rendered  # as it was written
    rendered.encode()
    with pytest.raises(ValueError, match="must be the text of a JSON object"):
        template(LLAMA3).render([HI, called('{"city": "\\ud800"}'), RESULT])


@pytest.mark.parametrize("family", sorted(TEMPLATES.keys() - {"llama3"}))
def test_several_calls_and_content(family: str) -> None:
    rendered = template(TEMPLATES[family]).render([HI, called(content="Let me see.", times=2), RESULT])
    assert rendered.count("東京") == 2 and rendered.count("Let me see.") == 1 and rendered.count("晴") == 1
    assert rendered.index("Let me see.") < rendered.index("weather")


def test_a_template_that_takes_one_call_gets_them_one_by_one() -> None:
    """Each before its own result, whatever the order of these; what belongs to none comes last."""
    message = called(content="Let me see.", times=2)
    first, second = (dict(call) for call in message["tool_calls"])
    second |= {"id": "call_2", "function": {"name": "search", "arguments": "{}"}}
    message["tool_calls"] = [first, second]
    results = [
        {"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in ("call_3", "call_2", "call_1")
    ]
    rendered = template(LLAMA3).render([HI, message, *results, HI])
    places = [rendered.index(word) for word in ("weather", "of call_1", "search", "of call_2", "of call_3")]
    assert places == sorted(places) and rendered.count("assistant") == 3
    in_one = template(QWEN3).render([HI, message, *results])
    assert in_one.index("search") < in_one.index("of call_3") < in_one.index("of call_1")


class Looks(dict[str, Any]):
    """A result, and how often any of them was asked whose it is."""

    count = 0

    def get(self, name: str, default: Any = None) -> Any:
        Looks.count += name == "tool_call_id"
        return super().get(name, default)


@pytest.mark.parametrize("ids", [[*range(300)], ["same"] * 300, [None] * 300, [["odd"]] * 300])
def test_the_result_of_a_call_is_not_looked_for_among_all(ids: list[object]) -> None:
    Looks.count = 0
    style = HistoryStyle(objects=True, texts=False, empty=None, apart=False, several=False, lists_tools=True)
    names = [f"call_{each}" if isinstance(each, int) else each for each in ids]
    function = {"name": "weather", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": each, "function": function} for each in names],
    }
    texts = [name if isinstance(name, str) else None for name in names]
    results = [Looks(role="tool", tool_call_id=text, content=str(n)) for n, text in enumerate(texts)]
    chat = style.rewritten([message, *reversed(results)])
    assert len(chat) == 600 and Looks.count <= 600
    if names[0] != names[1]:
        assert all(chat[at]["tool_calls"][0]["id"] == chat[at + 1]["tool_call_id"] for at in range(0, 600, 2))
    else:
        said = [each["content"] for each in chat if each["role"] == "tool"]
        assert said == [str(n) for n in reversed(range(300))]


@pytest.mark.parametrize("family", TEMPLATES)
def test_no_arguments(family: str) -> None:
    for none in (None, "", {}):
        rendered = template(TEMPLATES[family]).render([HI, called(none)])
        assert "weather" in rendered and ("{}" in rendered) == (family not in ONE_BY_ONE)


def test_arguments_that_are_no_object() -> None:
    """What was cut off goes back as it is where the template takes text; else it is refused, by its place."""
    cut = '{"city": "Ro'
    for source in (R1, V31, QWEN3):
        assert cut in template(source).render([HI, called(cut)])
    assert cut in template(GLM4).render([HI, called(cut)])
    for source in (LLAMA3, CODER, GLM45, V32, V4):
        with pytest.raises(ValueError, match=r"messages\[1\].tool_calls\[0\].function.arguments must be the text of"):
            template(source).render([HI, called(cut)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (5, "must be an object with a function"),
        ({"function": 5}, "must be an object with a function"),
        ({"function": {"arguments": "{}"}}, "must have a name"),
        ({"function": {"name": "f", "arguments": 5}}, "must be a text, not int"),
    ],
)
def test_a_call_that_is_none(call: object, message: str) -> None:
    for source in TEMPLATES.values():
        with pytest.raises(ValueError, match=message):
            template(source).render([HI, {"role": "assistant", "content": None, "tool_calls": [call]}])


@pytest.mark.parametrize("family", TEMPLATES)
def test_no_content_and_no_calls_are_neither_text_nor_calls(family: str) -> None:
    """Clients send null for an answer without text, and an empty list for no calls."""

    def rendered(**said: Any) -> str:
        return template(TEMPLATES[family]).render([HI, {"role": "assistant", **said}, HI])

    for said in ({"content": None}, {}, {"content": None, "tool_calls": []}, {"content": "", "tool_calls": None}):
        assert rendered(**said) == rendered(content="")
    assert rendered(content="a", tool_calls=[]) == rendered(content="a")


@pytest.mark.parametrize(
    "other", ["", "{{- raise_exception('only one') if ns.system }}"], ids=["the last wins", "refused"]
)
def test_instructions_of_several_system_messages_are_all_told(other: str) -> None:
    """Codex sends two. R1's distills show the last alone, others take none but the first: there they become one."""
    source = R1.replace("{% set ns.system = ns.system + m['content'] %}", other + "{% set ns.system = m['content'] %}")
    assert source != R1
    chat = [{"role": "system", "content": "A"}, HI, {"role": "system", "content": "B"}, HI]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    rendered = template(source).render(chat, tools)
    assert "A\n\nB" in rendered and "weather" in rendered and rendered.count("<｜User｜>hi") == 2
    assert "A\n\nB" not in template(QWEN3).render(chat)


def test_messages_are_left_alone_where_no_tool_is_spoken_of() -> None:
    chat = [HI, {"role": "assistant", "content": "a", "tool_calls": []}, {"role": "user", "content": "b"}]
    assert "a<E>" in template(R1).render(chat) and "tool" not in template(R1).render(chat)


def test_a_template_that_knows_no_calls_gets_each_as_a_line_of_its_own() -> None:
    """GLM-4's: calls and results in their order, what was said before them first."""
    rendered = template(GLM4).render([HI, called(content="Let me see.", times=2), RESULT, RESULT, HI])
    call, result = f"<|assistant|>weather\n{ARGUMENTS}", "<|observation|>\n晴"
    expected = f"<|assistant|>\nLet me see.{call}{call}{result}{result}<|user|>\nhi<|assistant|>"
    assert rendered.endswith(expected)


def test_tools_that_a_template_reads_from_the_system_message() -> None:
    """glm-4-9b-chat's."""
    made = template(
        "[gMASK]<sop>{% for m in messages %}"
        "{% for tool in m.tools or [] %}{{ '## ' + tool['function'] | tojson }}{% endfor %}"
        "{% if m.content %}<|{{ m.role }}|>{{ m.metadata }}\n{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    listed = f"## {json.dumps(TOOLS[0]['function'])}"
    assert made.render([HI], TOOLS) == f"[gMASK]<sop>{listed}<|user|>\nhi<|assistant|>"
    brief = {"role": "system", "content": "Be brief."}
    expected = (
        f"[gMASK]<sop>{listed}<|system|>\nBe brief.<|user|>\nhi<|assistant|>weather\n{ARGUMENTS}<|observation|>\n晴"
    )
    assert made.render([brief, HI, called(), RESULT], TOOLS, add_generation_prompt=False) == expected
    assert "tools" not in brief and "weather" not in made.render([brief, HI])


def test_a_tool_that_says_nothing() -> None:
    for source in TEMPLATES.values():
        assert "None" not in template(source).render([HI, called(), {"role": "tool", "content": None}])


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_model_is_told_of_its_tools(family: str, system: str | None) -> None:
    chat = [HI] if system is None else [{"role": "system", "content": system}, HI]
    made = template(TEMPLATES[family])
    rendered = made.render(chat, TOOLS)
    assert rendered.count("The weather of a city.") == 1 and "city" in rendered.replace("of a city", "")
    assert "weather" not in made.render(chat)
    if family in LISTS_NONE:  # behind the system prompt, with the format in which to call
        assert made.calls is not None
        told = made.calls.describe(TOOLS)
        assert f"<B>{system}\n\n{told}<｜User｜>hi" in rendered if system else f"<B>{told}<｜User｜>hi" in rendered
    assert chat[0] in (HI, {"role": "system", "content": "Be brief."})  # the client's messages are its own


def split(parser: ReasoningParser, text: str) -> dict[str, str]:
    found = {"reasoning": "", "content": ""}
    for kind, part in (*parser.push(text), *parser.finish()):
        found[kind] += part
    return found


def test_trap_29_thinking_is_a_switch_of_the_template() -> None:
    """V3.1 and Qwen3 are one model with a switch: the state of the parser is the prompt's, not the model's."""
    for source, switch in ((V31, "thinking"), (QWEN3, "enable_thinking")):
        made = template(source)
        on, off = (made.render([HI], **{switch: value}) for value in (True, False))
        told = {"reasoning": "Hm.", "content": "So."}
        opened = "Hm.\n</think>\n\nSo." if on.endswith("<think>") else "<think>\nHm.\n</think>\n\nSo."
        assert split(ReasoningParser.for_prompt(on), opened) == told
        assert split(ReasoningParser.for_prompt(off), "So.") == {"reasoning": "", "content": "So."}
    assert template(V31).render([HI]).endswith("</think>")  # off unless asked for, whereas Qwen3 thinks
