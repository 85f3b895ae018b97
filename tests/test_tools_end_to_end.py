"""A call that must be made, by a real engine that is held to it: tiny-r1 served with a template that knows tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from tests.gateway.text.calls.templates import CODER, QWEN3
from tests.serving import Served, serving

import twinline
from twinline.engine.grammars.library import installed

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")

WEIGHTS = Path(twinline.__file__).parent / "models" / "tiny-r1"
UNITS = ["°C", "°F"]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 4},
                    "unit": {"enum": UNITS},
                    "n": {"enum": [1, 2]},
                },
                "required": ["unit", "city", "n"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "forecast")
]


TEMPLATES = {"qwen3": QWEN3, "coder": CODER}


@pytest.fixture(scope="module", params=TEMPLATES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tools") / "caller"
    shutil.copytree(WEIGHTS, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES[request.param], "utf-8")
    with serving(str(folder)) as made:
        yield made


def test_a_call_that_must_be_made(server: Served) -> None:
    """It was never trained to call: what it says in the arguments is its own, their form is the schema's."""
    http = openai.DefaultHttpxClient(trust_env=False)
    client = openai.OpenAI(base_url=server.base, api_key="none", max_retries=0, http_client=http)
    asked: Any = {
        "model": "caller",
        "messages": [{"role": "user", "content": "What is 17+25?"}],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "forecast"}},
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }
    answer = client.chat.completions.create(**asked)
    assert answer.usage is not None and answer.usage.prompt_tokens < 760  # room for the longest call there can be
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "forecast" and choice.finish_reason == "tool_calls"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"unit", "city", "n"} and arguments["unit"] in UNITS and len(arguments["city"]) <= 4
    assert arguments["n"] in (1, 2)
    asked |= {"tool_choice": "required", "parallel_tool_calls": False}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls and final.message.content in (None, "")
    assert {each.function.name for each in final.message.tool_calls} <= {"weather", "forecast"}
    schema = {"type": "object", "properties": {"sum": {"enum": [41, 42]}}, "required": ["sum"]}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    either = client.chat.completions.create(**asked | {"tool_choice": "auto", "response_format": form})
    message = either.choices[0].message
    assert message.tool_calls or json.loads(message.content or "")["sum"] in (41, 42)
    assert json.loads(final.message.tool_calls[0].function.arguments).keys() == {"unit", "city", "n"}


@pytest.mark.parametrize("server", ["coder"], indirect=True)
def test_a_call_that_must_be_made_by_the_other_doors(server: Served) -> None:
    """Anthropic's messages and OpenAI's responses, streamed."""
    function = TOOLS[0]["function"]
    said = "What is 17+25?"
    claude = anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, http_client=anthropic.DefaultHttpxClient(trust_env=False)
    )
    with claude.messages.stream(
        model="caller",
        max_tokens=300,
        messages=[{"role": "user", "content": said}],
        tools=[{"name": "weather", "input_schema": function["parameters"]}],
        tool_choice={"type": "tool", "name": "weather"},
        thinking={"type": "disabled"},
    ) as events:
        (block,) = events.get_final_message().content
    assert block.type == "tool_use" and block.name == "weather" and set(block.input) == {"unit", "city", "n"}
    assert block.input["n"] in (1, 2) and block.input["unit"] in UNITS
    client = openai.OpenAI(
        base_url=server.base, api_key="none", max_retries=0, http_client=openai.DefaultHttpxClient(trust_env=False)
    )
    tools: Any = [{"type": "function", "strict": True, **function}]
    kwargs = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    with client.responses.stream(model="caller", input=said, tools=tools, tool_choice="required", **kwargs) as stream:
        response = stream.get_final_response()
    calls = [item for item in response.output if item.type == "function_call"]
    assert calls and {call.name for call in calls} == {"weather"}
    assert json.loads(calls[0].arguments)["n"] in (1, 2)
