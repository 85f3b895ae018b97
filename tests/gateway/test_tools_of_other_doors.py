"""The same calls by the other doors: Anthropic's messages and OpenAI's responses, by their clients."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from tests.gateway.harness import MODEL
from tests.gateway.test_tools import ARGUMENTS, TOOLS, Family, each, family  # noqa: F401  (fixtures)

FUNCTIONS: list[Any] = [tool["function"] for tool in TOOLS]


@pytest.mark.parametrize("stream", [False, True])
def test_by_the_anthropic_client(family: Family, stream: bool) -> None:  # noqa: F811
    http = anthropic.DefaultHttpxClient(trust_env=False)
    client = anthropic.Anthropic(base_url=family.door.url, api_key="none", max_retries=0, http_client=http)
    tools: Any = [
        {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in FUNCTIONS
    ]
    fields: Any = {"model": MODEL, "max_tokens": 2000, "tools": tools}
    asked: Any = [{"role": "user", "content": "hi"}]
    family.door.says(family.two)
    if stream:
        with client.messages.stream(messages=asked, **fields) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(messages=asked, **fields)
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [("weather", json.loads(ARGUMENTS)), ("search", {})]
    assert message.stop_reason == "tool_use" and not [block for block in message.content if block.type == "text"]
    family.door.says("Rain.")
    results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "wet"} for call in calls]
    asked += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    again = client.messages.create(messages=asked, **fields)
    assert again.content[-1].text == "Rain." and family.prompt().count("wet") == 2
    assert "東京" in family.prompt()


@pytest.mark.parametrize("stream", [False, True])
def test_by_responses(family: Family, stream: bool) -> None:  # noqa: F811
    tools: Any = [{"type": "function", "strict": False, **f} for f in FUNCTIONS]
    family.door.says(family.two)
    fields: Any = {"model": MODEL, "tools": tools, "input": "hi"}
    if stream:
        with family.client.responses.stream(**fields) as events:
            for _ in events:
                pass
            response = events.get_final_response()
    else:
        response = family.client.responses.create(**fields)
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.name, call.arguments) for call in calls] == [("weather", ARGUMENTS), ("search", "{}")]
    family.door.says("Rain.")
    asked: Any = [
        {"role": "user", "content": "hi"},
        *({"type": "function_call", "call_id": c.call_id, "name": c.name, "arguments": c.arguments} for c in calls),
        *({"type": "function_call_output", "call_id": c.call_id, "output": "wet"} for c in calls),
    ]
    again = family.client.responses.create(**fields | {"input": asked})
    assert again.output_text == "Rain." and family.prompt().count("wet") == 2
