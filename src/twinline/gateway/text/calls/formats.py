"""The formats of tool calls that are spoken here, and how a model's is known from its chat template.

Owns the list: which marks open and end a call, and what a model is told of its tools where its template does not say
it. Must not know any model's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from twinline.gateway.text.calls.call import Call
from twinline.gateway.text.calls.deepseek_call import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    FENCE,
    SEPARATOR,
    DeepSeekCall,
)
from twinline.gateway.text.calls.json_call import JsonCall

Tools = Sequence[Mapping[str, Any]]
TAG, END_TAG = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class Written:
    """How a model writes calls: `before` and `after` the arguments of each, `NAME` standing for the function's."""

    NAME: ClassVar[str] = "\0"

    before: str
    after: str
    between: str = ""
    opens: str = ""
    closes: str = ""

    def one(self, name: str, arguments: str) -> str:
        """One call alone."""
        return f"{self.opens}{self.before.replace(self.NAME, name)}{arguments}{self.after}{self.closes}"


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls stand in a text.

    `openers` begin a call anywhere. `bare`: so does a brace at the very start of the text. `tails` may follow a call's
    object, each once and in this order. `repeats`: another object may follow, before the last tail.
    """

    name: str
    openers: tuple[str, ...]
    tails: tuple[str, ...]
    read: Callable[[Set[str], str], Call]  # the functions' names, and the opener that was read
    describe: Callable[[Tools], str]
    written: Written
    bare: bool = False
    repeats: bool = False
    inside: tuple[str, ...] = ()  # further marks that are tokens

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must be shown where they are special tokens: parsing needs them."""
        return (*self.openers, *self.inside)


def _listed(tools: Tools) -> str:
    listed = []
    for tool in tools:
        function = tool["function"]
        parameters = json.dumps(function.get("parameters") or {}, ensure_ascii=False)
        description = function.get("description") or ""
        listed.append(f"### {function['name']}\nDescription: {description}\n\nParameters: {parameters}\n")
    return "\n".join(listed)


def _told(written: Written) -> Callable[[Tools], str]:
    """What DeepSeek's model card of V3.1 says to put behind the system prompt, with a format's own call in it."""
    call = written.before.replace(Written.NAME, "tool_call_name") + "tool_call_arguments" + written.after

    def describe(tools: Tools) -> str:
        return (
            f"## Tools\nYou have access to the following tools:\n\n{_listed(tools)}\n"
            "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
            f"{written.opens}{call}{{additional_tool_calls}}{written.closes}\n\n"
            "Where:\n- `tool_call_name` must be an exact match to one of the available tools\n"
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
            "- For multiple tool calls, chain them directly without separators or spaces"
        )

    return describe


def _shown(written: Written) -> Callable[[Tools], str]:
    def describe(tools: Tools) -> str:
        shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return f"# Tools\n\nThese functions can be called:\n{shown}\n\nA call is one JSON object:\n" + written.one(
            "<function name>", "<arguments as a JSON object>"
        )

    return describe


def _deepseek(name: str, before: str, after: str, between: str = "") -> CallFormat:
    written = Written(before, after, between, CALLS_BEGIN, CALLS_END)
    return CallFormat(
        name,
        openers=(CALLS_BEGIN, CALL_BEGIN),
        tails=(FENCE, CALL_END, CALLS_END),
        read=DeepSeekCall,
        describe=_told(written),
        written=written,
        inside=(SEPARATOR, CALL_END, CALLS_END),
    )


DEEPSEEK_V3 = _deepseek(
    "deepseek_v3", f"{CALL_BEGIN}function{SEPARATOR}{Written.NAME}\n```json\n", f"\n```{CALL_END}", "\n"
)
DEEPSEEK_V31 = _deepseek("deepseek_v31", f"{CALL_BEGIN}{Written.NAME}{SEPARATOR}", CALL_END)
_HERMES = Written(f'{TAG}\n{{"name": "{Written.NAME}", "arguments": ', f"}}\n{END_TAG}", "\n")
HERMES = CallFormat(
    "hermes",
    openers=(TAG,),
    tails=("}", END_TAG),  # models add a brace too many
    read=lambda names, opener: JsonCall(names, (END_TAG,)),
    describe=_shown(_HERMES),
    written=_HERMES,
    repeats=True,
    inside=(END_TAG,),
)
_LLAMA3 = Written(f'{{"name": "{Written.NAME}", "parameters": ', "}", "; ")
LLAMA3 = CallFormat(
    "llama3",
    openers=(PYTHON_TAG,),
    tails=(";",),
    read=lambda names, opener: JsonCall(names),
    describe=_shown(_LLAMA3),
    written=_LLAMA3,
    bare=True,
    repeats=True,
)

# In this order: the first whose words are all in a template, and none of the words that it must not have.
_SIGNS: tuple[tuple[CallFormat, tuple[str, ...], tuple[str, ...]], ...] = (
    (DEEPSEEK_V3, (CALLS_BEGIN, SEPARATOR, "```json"), ()),
    (DEEPSEEK_V31, (CALLS_BEGIN, SEPARATOR), ()),
    (HERMES, (TAG, "arguments"), ("<function=", "<arg_key>")),  # Qwen3-Coder's and GLM's calls are no JSON
    (LLAMA3, ("<|start_header_id|>", '"parameters": '), ()),
)


def detect(templates: Iterable[str]) -> CallFormat | None:
    """The format that a model's chat templates write; None if they write none that is known here."""
    text = "\n".join(templates)
    for format_, words, others in _SIGNS:
        if all(word in text for word in words) and not any(word in text for word in others):
            return format_
    return None
