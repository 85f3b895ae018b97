"""What an answer must look like that has to call a tool, or has a form unless it calls one: the structural tag that a
grammar engine is given.

Owns its words, which are xgrammar's (its documentation, "Structural Tag"). Must not know who compiles it.
"""

from __future__ import annotations

import json
from typing import Any

from twinline.gateway.text.calls.format import CallFormat, Tools

MOST_WHITESPACE = 4  # between two parts of JSON: models write one space, a small one may go on with them to the end
# Between marks, where it may stand around a text that the schema limits too, and is not the text's (`typed.Said`).
MOST_BETWEEN_MARKS = 1
_ANY_OBJECT = {"type": "object"}


def structural_tag(format_: CallFormat, tools: Tools, only_one: bool, form: object = None) -> str:
    """One call at least of these tools, each with arguments by its schema, and nothing beside calls. `form`: a JSON
    schema that the answer may keep to instead.

    `only_one`: no more than one. Line breaks may come first: models write them after their reasoning.
    """
    written = format_.written
    tags = []
    for tool in tools:
        function = tool["function"]
        schema = function.get("parameters") or _ANY_OBJECT
        content = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MOST_WHITESPACE}
        if written.style != "json":
            content |= {"style": written.style, "max_whitespace_cnt": MOST_BETWEEN_MARKS}
        begin = written.before.replace(written.NAME, function["name"])
        tags.append({"type": "tag", "begin": begin, "content": content, "end": written.after})
    elements: list[dict[str, Any]] = []
    if written.opens:
        elements.append({"type": "const_string", "value": written.opens})
    elements.append(
        {
            "type": "tags_with_separator",
            "tags": tags,
            "separator": written.between,
            "at_least_one": True,
            "stop_after_first": only_one,
        }
    )
    if written.closes:
        elements.append({"type": "const_string", "value": written.closes})
    if form is not None:
        answer = {"type": "json_schema", "json_schema": form, "max_whitespace_cnt": MOST_WHITESPACE}
        elements = [{"type": "or", "elements": [answer, {"type": "sequence", "elements": elements}]}]
    elements = [{"type": "regex", "pattern": r"\n{0,2}"}, *elements]
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
    return json.dumps(tag, ensure_ascii=False)
