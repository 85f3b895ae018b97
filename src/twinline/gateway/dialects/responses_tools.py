"""The tools of a Responses request as a chat's, and the names of calls back.

Owns what is flattened and what is left out: a namespace's functions become functions by a name of both, and tools that
OpenAI itself runs are not there. Codex sends either to every server. Must not know items nor answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twinline.gateway.errors import ApiError, bad_request

Tools = Sequence[Mapping[str, Any]]
_HOSTED = frozenset("web_search web_search_preview file_search code_interpreter image_generation tool_search".split())
_FIELDS = ("name", "description", "parameters", "strict")


def chat_tools(tools: Tools) -> list[dict[str, Any]]:
    """Raises ApiError 400 for what is no function."""
    return [_tool(tool, where) for where, tool in _functions(tools)]


def left_out(tools: Tools) -> list[str]:
    """Tools that the model is not told of, in words for the client."""
    return [f"tools[{index}] ({_kind(tool)})" for index, tool in enumerate(tools) if _kind(tool) in _HOSTED]


def flat_name(namespace: object, name: object) -> object:
    """A function's one name."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and isinstance(name, str) else name


def spaced_names(tools: Tools) -> dict[str, tuple[str, str]]:
    """By their one name, namespace and name of the functions that have both. The tools were taken by `chat_tools`."""
    return {
        f"{tool['name']}__{inner['name']}": (tool["name"], inner["name"])
        for tool in tools
        if _kind(tool) == "namespace"
        for inner in tool["tools"]
    }


def _kind(tool: Mapping[str, Any]) -> str:
    """Without the date that some have."""
    return str(tool.get("type")).partition("_202")[0]


def _functions(tools: Tools) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, tool in enumerate(tools):
        where, kind = f"tools[{index}]", _kind(tool)
        if kind == "namespace":
            inside = tool.get("tools")
            if not isinstance(tool.get("name"), str) or not isinstance(inside, list):
                raise bad_request("A namespace needs a name and a list of tools.", where)
            for number, inner in enumerate(inside):
                if not isinstance(inner, Mapping):
                    raise bad_request("A tool is an object.", f"{where}.tools[{number}]")
                yield f"{where}.tools[{number}]", {**inner, "name": flat_name(tool["name"], inner.get("name"))}
        elif kind not in _HOSTED:
            yield where, tool


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same function, one level deeper."""
    kind = tool.get("type")
    if kind != "function":
        told = f"A tool of the type {kind!r} is not there; tools are functions that the client runs."
        raise ApiError(400, told, param=f"{where}.type", code="unsupported_parameter")
    function = {name: tool[name] for name in _FIELDS if tool.get(name) is not None}
    if not isinstance(function.get("name"), str):
        raise bad_request("A function needs a name.", f"{where}.name")
    return {"type": "function", "function": function}
