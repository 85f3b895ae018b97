"""Calls of earlier turns as a chat template wants them: arguments as an object or as text, content as none or empty.

Owns finding that out, by rendering a conversation that is known, and changing messages accordingly. Must not know a
template's text: Qwen's templates write arguments as JSON (a string would be written as a JSON string), Qwen3-Coder's
and GLM-4.5's write them one by one (a string is an error), DeepSeek's join them to text (an object is an error), some
write no call beside content or none beside empty content, Llama's write one call in a message, and GLM-4's know no
calls: there a call is a message whose `metadata` is the name, and a result one of the role `observation` (model card of
GLM-4-32B-0414); glm-4-9b-chat's reads the tools from the system message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Render = Callable[[list[Message], list[Mapping[str, Any]] | None], str]

_NAME, _SAID, _TEXT = "probe_name", "probe_said", '{"probe_key": "probe_value"}'
_LINES = re.compile(rf"{_NAME}\s*\n\s*{re.escape(_TEXT)}")
_HI: Message = {"role": "user", "content": "hi"}
_TOOL = {
    "type": "function",
    "function": {"name": _NAME, "description": "probe", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True, slots=True)
class HistoryStyle:
    """What one template wants. `objects`, `texts`: it writes arguments of that kind as they should be.

    `empty` is the content of a message that has calls and says nothing. `apart`: content and calls of one message have
    to be two messages, or the calls would be left out. `several`: a message may have more than one call. `lines`: each
    call is a message of its own, named by its metadata. `lists_tools`: it tells the model of its tools; `tools_inside`:
    of those in the system message. `one_system`: of two system messages it shows one (R1's distills), or refuses both.
    """

    objects: bool
    texts: bool
    empty: str | None
    apart: bool
    several: bool
    lists_tools: bool
    lines: bool = False
    tools_inside: bool = False
    one_system: bool = False

    @classmethod
    def of(cls, render: Render) -> HistoryStyle:
        """`render` gives the prompt for messages and tools, or raises ValueError."""

        def shown(content: str | None, arguments: object, apart: bool = False, times: int = 1) -> str:
            call = {"id": "call_0", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
            said: list[Message] = [{"role": "assistant", "content": content, "tool_calls": [call] * times}]
            if apart:
                said = [{"role": "assistant", "content": content}, {**said[0], "content": empty}]
            chat = [
                _HI,
                *said,
                {"role": "tool", "content": "1", "tool_call_id": "call_0"},
            ]
            return tried(chat)

        def tried(chat: list[Message], tools: list[Mapping[str, Any]] | None = None) -> str:
            try:
                return render(chat, tools)
            except ValueError:
                return ""

        def is_python(text: str) -> bool:
            """An object or None was written as Python's own text for it."""
            return "'probe_key'" in text or text.count("None") > plain.count("None")

        plain = tried([_HI])
        objects = texts = False
        empty: str | None = None
        for empty in (None, ""):
            as_object, as_text = shown(empty, json.loads(_TEXT)), shown(empty, _TEXT)
            objects = _NAME in as_object and "probe_value" in as_object and not is_python(as_object)
            texts = _NAME in as_text and _TEXT in as_text and not is_python(as_text)
            if objects or texts:
                break
        arguments: object = json.loads(_TEXT) if objects else _TEXT
        apart = _NAME not in shown(_SAID, arguments) and _NAME in shown(_SAID, arguments, apart=True)
        several = shown(empty, arguments, times=2).count(_NAME) >= 2
        lines = False
        if not objects and not texts:
            named = {"role": "assistant", "metadata": _NAME, "content": _TEXT}
            lines = texts = _LINES.search(tried([_HI, named, {"role": "observation", "content": "1"}])) is not None
        lists_tools = _NAME in tried([_HI], [_TOOL])
        inside = not lists_tools and _NAME in tried(with_tools_inside([_HI], [_TOOL]))
        instructions = tried([{"role": "system", "content": said} for said in (_NAME, _SAID)] + [_HI])
        one = _NAME not in instructions or _SAID not in instructions
        return cls(objects, texts, empty, apart, several or lines, lists_tools, lines, inside, one)

    def rewritten(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template wants them. Raises ValueError for a call that it cannot write."""
        if not any(message.get("tool_calls") or message.get("role") == "tool" for message in messages):
            return list(messages)
        if self.lines:
            return [line for number, message in enumerate(messages) for line in self._lines(message, number)]
        chat: list[Message] = []
        for number, message in enumerate(messages if self.several else _one_by_one(messages)):
            if not message.get("tool_calls"):
                chat.append(message)
            else:
                chat += self._called(message, f"messages[{number}]")
        return chat

    def _called(self, message: Message, where: str) -> list[Message]:
        given = message["tool_calls"]
        calls = [self._call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(given)]
        content = message["content"]
        if not content:
            return [{**message, "content": self.empty, "tool_calls": calls}]
        if not self.apart:
            return [{**message, "tool_calls": calls}]
        said = {name: value for name, value in message.items() if name != "tool_calls"}
        return [said, {"role": "assistant", "content": self.empty, "tool_calls": calls}]

    def _lines(self, message: Message, number: int) -> Iterator[Message]:
        if message.get("role") == "tool":
            yield {"role": "observation", "content": message["content"] or ""}
            return
        said = {name: value for name, value in message.items() if name != "tool_calls"}
        calls = message.get("tool_calls") or ()
        if said["content"] or not calls:
            yield said
        for index, call in enumerate(calls):
            function = self._call(call, f"messages[{number}].tool_calls[{index}]")["function"]
            yield {"role": "assistant", "metadata": function["name"], "content": function["arguments"]}

    def _call(self, call: object, where: str) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping):
            raise ValueError(f"{where} must be an object with a function")
        if not isinstance(function.get("name"), str):
            raise ValueError(f"{where}.function must have a name")
        arguments = self._arguments(function.get("arguments"), f"{where}.function.arguments")
        return {"type": "function", **call, "function": {**function, "arguments": arguments}}

    def _arguments(self, given: object, where: str) -> object:
        """An object where the template takes one, as models are trained on its own way to write JSON."""
        if isinstance(given, str) and given.strip():
            try:
                value = json.loads(given)
                if "\\u" in given:
                    json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text for a prompt
            except (ValueError, RecursionError):
                value = None
            if self.objects and isinstance(value, dict):
                return value
            if self.texts or not self.objects:
                return given
            raise ValueError(f"{where} must be the text of a JSON object: this model's chat template takes no other")
        if given is None or given == "":
            given = {}
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} must be a text, not {type(given).__name__}")
        return dict(given) if self.objects or not self.texts else json.dumps(given, ensure_ascii=False)


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """A message with several calls as one for each, every one before its own result."""
    waiting = list(reversed(messages))
    while waiting:
        message = waiting.pop()
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            yield message
            continue
        results: dict[int, Message] = {}
        of: dict[object, list[int]] = {}  # a call's id
        while waiting and waiting[-1].get("role") == "tool":
            result = waiting.pop()
            of.setdefault(result.get("tool_call_id"), []).append(len(results))
            results[len(results)] = result
        for number, call in enumerate(calls):
            yield {**message, "content": None if number else message["content"], "tool_calls": [call]}
            name = call.get("id") if isinstance(call, Mapping) else None
            for place in of.pop(name, ()) if name is None or isinstance(name, str) else ():
                yield results.pop(place)
        yield from results.values()


def with_one_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with one system message at most, first and of the texts of all."""
    systems = [message for message in messages if message.get("role") == "system"]
    if not systems:
        return list(messages)
    content = "\n\n".join(message["content"] for message in systems)
    return [{**systems[0], "content": content}, *(each for each in messages if each.get("role") != "system")]


def with_tools_told(messages: Sequence[Message], told: str) -> list[Message]:
    """The messages with `told` behind the system prompt, for a template that does not list tools itself."""
    chat = list(messages)
    for number, message in enumerate(chat):
        if message.get("role") == "system":
            said = message.get("content")
            chat[number] = {**message, "content": f"{said}\n\n{told}" if said else told}
            return chat
    return [{"role": "system", "content": told}, *chat]


def with_tools_inside(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with `tools` in the system message, for a template that looks for them there."""
    chat = list(messages)
    for number, message in enumerate(chat):
        if message.get("role") == "system":
            chat[number] = {**message, "tools": list(tools)}
            return chat
    return [{"role": "system", "content": "", "tools": list(tools)}, *chat]
