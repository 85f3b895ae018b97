"""What a format of tool calls is: how calls stand in a text, how they are read, and how a model is told to write them.

Owns the contract and the words for a model whose template does not list its tools. Must not know any one format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from twinline.gateway.text.calls.call import Call

Tools = Sequence[Mapping[str, Any]]
Functions = Mapping[str, Mapping[str, Any]]  # names and the schemas of their parameters
Style = Literal["json", "qwen_xml", "glm_xml", "deepseek_xml"]  # xgrammar's words for how arguments are written


@dataclass(frozen=True, slots=True)
class Written:
    """How a model writes calls: `before` and `after` the arguments of each, `NAME` standing for the function's."""

    NAME: ClassVar[str] = "\0"

    before: str
    after: str
    between: str = ""
    opens: str = ""
    closes: str = ""
    style: Style = "json"

    def one(self, name: str, arguments: str) -> str:
        """One call alone."""
        return f"{self.opens}{self.before.replace(self.NAME, name)}{arguments}{self.after}{self.closes}"


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls stand in a text.

    `openers` begin a call anywhere. `bare`: so does, at the very start of the text, one that `begins` without a mark.
    `tails` may follow a call, each once and in this order. `repeats`: another one without a mark may follow, before the
    last tail.
    """

    name: str
    openers: tuple[str, ...]
    tails: tuple[str, ...]
    read: Callable[[Functions, str], Call]  # what may be called, and the opener that was read
    describe: Callable[[Tools], str]
    written: Written
    bare: bool = False
    repeats: bool = False
    inside: tuple[str, ...] = ()  # further marks that are tokens
    begins: Callable[[str, Set[str]], bool] = lambda text, names: text[0] == "{"  # of text and the functions' names

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must be shown where they are special tokens: parsing needs them."""
        return (*self.openers, *self.inside)


def listed(tools: Tools) -> str:
    """As DeepSeek's model card of V3.1 lists them."""
    entries = []
    for tool in tools:
        function = tool["function"]
        parameters = json.dumps(function.get("parameters") or {}, ensure_ascii=False)
        description = function.get("description") or ""
        entries.append(f"### {function['name']}\nDescription: {description}\n\nParameters: {parameters}\n")
    return "\n".join(entries)


def shown(example: str, manner: str = "A call is one JSON object:") -> Callable[[Tools], str]:
    """The tools as JSON, and what a call looks like."""

    def describe(tools: Tools) -> str:
        written = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return f"# Tools\n\nThese functions can be called:\n{written}\n\n{manner}\n{example}"

    return describe
