"""What a chat request says of tools: which it brings, whether they may be called, and how many at once.

Owns the fields `tools`, `tool_choice` and `parallel_tool_calls`. Must not know how a model writes a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinline.gateway.api_types import ChatRequest
from twinline.gateway.errors import ApiError, bad_request
from twinline.gateway.text.calls.forced import structural_tag
from twinline.gateway.text.calls.format import CallFormat
from twinline.gateway.text.calls.parser import CallParser

MAX_TOOLS = 1024
# What would not be found again in a call's head: OpenAI's names are letters, digits, _ and - only.
_NAME = re.compile(r"""[^\s"'`<>{}\\\x00-\x1f]{1,128}""")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`tools` go to the template; calls of `names` are looked for in the answer. Nothing of both: calls are not.

    `must`: one of these has to be called; empty where the model decides.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    names: frozenset[str] = frozenset()
    only_one: bool = False
    must: frozenset[str] = frozenset()

    def parser(self, format_: CallFormat | None) -> CallParser | None:
        """One for each choice; None where no calls are looked for."""
        if format_ is None or not self.names:
            return None
        functions = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.tools}
        return CallParser(format_, functions, self.only_one)

    def held(self, format_: CallFormat | None, form: str | None) -> str | None:
        """The structural tag of calls that have to be made, or that may be made in place of an answer that keeps to the
        JSON schema `form`; None where neither is asked for. Raises ApiError 400."""
        if format_ is None or not self.names:
            return None
        tools = [tool for tool in self.tools if not self.must or tool["function"]["name"] in self.must]
        try:
            if self.must:
                return structural_tag(format_, tools, self.only_one)
            return None if form is None else structural_tag(format_, tools, self.only_one, json.loads(form))
        except RecursionError:
            where = "tools" if self.must else "response_format"
            raise bad_request(f"A schema of {where} is nested too deep.", where) from None
        except ValueError as error:
            raise bad_request(f"The schema of the answer is not JSON: {error}.", "response_format") from None


_NO_TOOLS = ToolUse()


def tool_use(request: ChatRequest, format_: CallFormat | None) -> ToolUse:
    """Raises ApiError 400 for tools that are none, and for a choice that is not among them.

    Where the model's format is not known, they are only passed on to lines that take text, as they are.
    """
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice needs tools.", param="tool_choice", code="unsupported_parameter")
        return _NO_TOOLS
    if len(request.tools) > MAX_TOOLS:
        raise bad_request(f"There are {len(request.tools)} tools, at most {MAX_TOOLS} are allowed.", "tools")
    if format_ is None:
        return _NO_TOOLS
    names = frozenset(_name(tool, f"tools[{index}]") for index, tool in enumerate(request.tools))
    named = _named(choice, names)
    if choice == "none":
        return _NO_TOOLS
    must = names if choice == "required" else frozenset(() if named is None else (named,))
    return ToolUse(tuple(request.tools), names, request.parallel_tool_calls is False or named is not None, must)


def _name(tool: object, where: str) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(function, Mapping):
        raise bad_request(f"{where} must be an object of type function, with a function.", where)
    name = function.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise bad_request(
            f"{where}.function needs a name of 1 to 128 characters without white space, quotes and brackets.", where
        )
    for field, kind, called in (("description", str, "a text"), ("parameters", Mapping, "an object")):
        value = function.get(field)
        if value is not None and not isinstance(value, kind):
            raise bad_request(f"{where}.function.{field} must be {called}, not {type(value).__name__}.", where)
    return name


def _named(choice: object, names: frozenset[str]) -> str | None:
    """The function that has to be called."""
    if choice in (None, "none", "auto", "required"):
        return None
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise bad_request(
            'tool_choice must be "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.',
            "tool_choice",
        )
    if name not in names:
        raise bad_request(f"tool_choice names {name[:128]!r}, which is not among the tools.", "tool_choice")
    return name
