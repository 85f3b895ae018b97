"""Parsers of what models write: templates, reasoning, calls."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from typing import Any

from benchmarks.fuzz.given import TINY, Given, Made, cut

WORK = re.compile(r"\*|range|lipsum|\d[\d_]{3}|0[xob]|recursive|indent|center|wordwrap|%\s*\d|format")


def templates() -> Made:
    from tests.gateway.text.calls.templates import TEMPLATES

    from twinline.gateway.text.template import ChatTemplate

    call = {"function": {"name": "weather", "arguments": '{"city": "東京"}'}}
    said = {"role": "assistant", "content": "Hello."}
    chat = [{"role": "user", "content": "Hi"}, {**said, "tool_calls": [call]}, {"role": "tool", "content": "1"}, said]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]

    def one(given: Given) -> None:
        turns, listed, left_open = 1 + given.number(3), given.number(1), given.number(1)
        if not WORK.search(source := given.text()):
            with contextlib.suppress(ValueError):
                made = ChatTemplate({"default": source}, {"bos_token": "<s>"})
                made.render(chat[:turns], tools if listed else None, continue_final_message=bool(left_open))

    tiny = json.loads((TINY / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    nested = "{% for a in [1] %}" * 25 + "{% endfor %}" * 25
    return [tiny, *TEMPLATES.values(), nested, "{{ " + "not " * 900 + "a }}"], one


def reasoning() -> Made:
    """And stop strings."""
    from twinline.gateway.text.reasoning import ReasoningParser
    from twinline.gateway.text.stops import StopMatcher

    def read(chunks: list[str], opened: bool, stops: list[str]) -> Any:
        parser, matcher = ReasoningParser(opened, bool(stops)), StopMatcher([stop for stop in stops if stop], opened)
        found, sent = {"reasoning": "", "content": ""}, [matcher.push(chunk) for chunk in chunks]
        for kind, text in itertools.chain(*map(parser.push, chunks), parser.finish()):
            found[kind] += text
        return found, "".join(text for text, _ in sent) + matcher.finish(), sent[-1][1]

    def one(given: Given) -> None:
        opened, marks, stops = bool(given.number(1)), given.marks(), [given.word() for _ in range(given.number(3))]
        text = given.text()
        assert read(cut(text, marks), opened, stops) == read([text], opened, stops) == read([*text, ""], opened, stops)

    return ["<think>\nhm\n</think>\n\n4", "hm</think>4", " \n<think>a</thin</think>\n", "4 <think>",
            "hm\n</think>\n\n<response>\n4\n</response>\n"], one  # fmt: skip


def calls() -> Made:
    from tests.gateway.text.calls.test_parser import FORMATS, read

    def one(given: Given) -> None:
        format_, alone, marks = given.one_of([one for one, _ in FORMATS.values()]), bool(given.number(1)), given.marks()
        text = given.text()
        assert read(format_, cut(text, marks), alone) == read(format_, [text], alone) == read(format_, [*text], alone)

    return [text for _, cases in FORMATS.values() for _, text, _ in cases], one
