"""Whatever a client sends for tools and calls: it is taken, or refused by name; never an error of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.text.calls.templates import TEMPLATES

from twinline.gateway.api_types import ChatRequest
from twinline.gateway.errors import ApiError
from twinline.gateway.text.calls.formats import HERMES
from twinline.gateway.text.template import ChatTemplate
from twinline.gateway.tools import tool_use

T = TypeVar("T")
WORDS = [
    "type",
    "function",
    "name",
    "arguments",
    "parameters",
    "description",
    "id",
    "required",
    "{}",
    '{"a": 1}',
    "[",
    "",
]
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
        | st.fixed_dictionaries({"type": st.just("function"), "function": inner})
        | st.fixed_dictionaries({"name": st.text("ab ", min_size=1, max_size=3)}, optional={"arguments": inner})
    ),
    max_leaves=8,
)
MADE = [ChatTemplate({"default": source}, {"bos_token": "<B>", "eos_token": "<E>"}) for source in TEMPLATES.values()]
ANY = settings(max_examples=300, deadline=None, derandomize=True)


def tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except (ApiError, ValueError) as error:
        return None, error


@given(tools=st.lists(values, max_size=3), choice=values, parallel=st.none() | st.booleans())
@ANY
def test_any_tools(tools: list[Any], choice: Any, parallel: bool | None) -> None:
    fields = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}
    request = ChatRequest(model="m", messages=[], **fields)  # type: ignore[arg-type]
    use, error = tried(lambda: tool_use(request, HERMES))
    if use is None:
        assert isinstance(error, ApiError) and error.status == 400 and str(error.param).startswith("tool")
        return
    assert (use.parser(HERMES) is None) == (not use.names)
    for made in MADE:
        assert isinstance(made.render([{"role": "user", "content": "hi"}], use.tools), str)


@given(calls=st.lists(values, min_size=1, max_size=3), content=st.none() | st.text(max_size=4))
@ANY
def test_any_earlier_calls(calls: list[Any], content: str | None) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content, "tool_calls": calls}]
    for made in MADE:
        text, error = tried(lambda made=made: made.render(chat))  # type: ignore[misc]
        assert isinstance(text, str) or str(error)


@pytest.mark.parametrize("family", range(len(MADE)))
def test_arguments_nested_without_end(family: int) -> None:
    deep = '{"a": ' * 5000 + "1" + "}" * 5000
    call = {"type": "function", "function": {"name": "f", "arguments": deep}}
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text, error = tried(lambda: MADE[family].render(chat))
    assert deep in text if text is not None else "arguments must be the text of a JSON object" in str(error)
    nested: Any = {}
    for _ in range(5000):
        nested = {"a": nested}
    tool = {"type": "function", "function": {"name": "f", "parameters": nested}}
    with pytest.raises(ValueError, match=r"nested too deeply|recursion"):
        MADE[family].render(chat[:1], [tool])


def test_a_request_of_the_official_client_is_taken_whole() -> None:
    """Fields of OpenAI's that mean nothing here do no harm."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [
            {"type": "function", "function": {"name": "f-1_a", "strict": True, "parameters": {"type": "object"}}}
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    use = tool_use(msgspec.json.decode(json.dumps(body), type=ChatRequest), HERMES)
    assert use.names == {"f-1_a"} and not use.only_one and use.tools[0]["function"]["strict"] is True
