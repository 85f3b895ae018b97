"""The formats of tool calls that are spoken here, and how a model's is known from its chat template.

Owns the list: which marks open and end a call, and what a model is told of its tools where its template does not say
it. Must not know any model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twinline.gateway.text.calls.deepseek_call import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    FENCE,
    SEPARATOR,
    DeepSeekCall,
)
from twinline.gateway.text.calls.format import CallFormat, Tools, Written, listed, shown
from twinline.gateway.text.calls.json_call import JsonCall
from twinline.gateway.text.calls.line_call import LineCall, may_begin
from twinline.gateway.text.calls.marked_formats import (
    ARG_KEY,
    ARG_VALUE,
    DEEPSEEK_V4,
    DEEPSEEK_V32,
    DSML,
    END_TAG,
    FUNCTION,
    GLM45,
    GLM47,
    PARAMETER,
    QWEN3_CODER,
    TAG,
)

PYTHON_TAG = "<|python_tag|>"
ASSISTANT, OBSERVATION = "<|assistant|>", "<|observation|>"
_JSON = "<arguments as a JSON object>"


def _told(written: Written) -> Callable[[Tools], str]:
    """What DeepSeek's model card of V3.1 says to put behind the system prompt, with a format's own call in it."""
    call = written.before.replace(Written.NAME, "tool_call_name") + "tool_call_arguments" + written.after

    def describe(tools: Tools) -> str:
        return (
            f"## Tools\nYou have access to the following tools:\n\n{listed(tools)}\n"
            "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
            f"{written.opens}{call}{{additional_tool_calls}}{written.closes}\n\n"
            "Where:\n- `tool_call_name` must be an exact match to one of the available tools\n"
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
            "- For multiple tool calls, chain them directly without separators or spaces"
        )

    return describe


def _deepseek(name: str, before: str, after: str, between: str = "") -> CallFormat:
    written = Written(before, after, between, CALLS_BEGIN, CALLS_END)
    return CallFormat(
        name,
        openers=(CALLS_BEGIN, CALL_BEGIN),
        tails=(FENCE, CALL_END, CALLS_END),
        read=lambda functions, opener: DeepSeekCall(functions.keys(), opener),
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
    read=lambda functions, opener: JsonCall(functions.keys(), (END_TAG,)),
    describe=shown(_HERMES.one("<function name>", _JSON)),
    written=_HERMES,
    repeats=True,
    inside=(END_TAG,),
)
_LLAMA3 = Written(f'{{"name": "{Written.NAME}", "parameters": ', "}", "; ")
LLAMA3 = CallFormat(
    "llama3",
    openers=(PYTHON_TAG,),
    tails=(";",),
    read=lambda functions, opener: JsonCall(functions.keys()),
    describe=shown(_LLAMA3.one("<function name>", _JSON)),
    written=_LLAMA3,
    bare=True,
    repeats=True,
)

_GLM4 = Written(f"{Written.NAME}\n", "", ASSISTANT)
GLM4 = CallFormat(
    "glm4",
    openers=(ASSISTANT,),
    tails=(OBSERVATION,),
    read=lambda functions, opener: LineCall(functions.keys(), (ASSISTANT, OBSERVATION)),
    describe=shown(_GLM4.one("<function name>", _JSON), "A call is a function's name alone on a line, then JSON:"),
    written=_GLM4,
    bare=True,
    repeats=True,
    begins=may_begin,
)

# In this order: the first whose words are all in a template, and none of the words that it must not have.
_SIGNS: tuple[tuple[CallFormat, tuple[str, ...], tuple[str, ...]], ...] = (
    (DEEPSEEK_V3, (CALLS_BEGIN, SEPARATOR, "```json"), ()),
    (DEEPSEEK_V31, (CALLS_BEGIN, SEPARATOR), ()),
    (DEEPSEEK_V32, (DSML, "function_calls>", "invoke name="), ()),
    (DEEPSEEK_V4, (DSML, "tool_calls>", "invoke name="), ()),
    (QWEN3_CODER, (TAG, FUNCTION, PARAMETER), ()),
    (GLM47, (TAG, f"</arg_key>{ARG_VALUE}"), ("<tool_sep>",)),  # Hunyuan's, whose head is another
    (GLM45, (TAG, ARG_KEY, ARG_VALUE), ("<tool_sep>",)),
    (
        HERMES,
        (TAG, "arguments"),
        (FUNCTION, ARG_KEY, "<invoke name="),
    ),
    (LLAMA3, ("<|start_header_id|>", '"parameters": '), ()),
    (GLM4, ("[gMASK]", "metadata"), ()),
)


def detect(templates: Iterable[str]) -> CallFormat | None:
    """The format that a model's chat templates write; None if they write none that is known here."""
    text = "\n".join(templates)
    for format_, words, others in _SIGNS:
        if all(word in text for word in words) and not any(word in text for word in others):
            return format_
    return None
