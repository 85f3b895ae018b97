"""The formats whose arguments stand one by one between marks: Qwen3-Coder's, GLM-4.5's and DeepSeek V3.2's and V4's.

Owns their marks. Sources: the chat templates of Qwen3-Coder, GLM-4.6 and GLM-4.7-Flash; DeepSeek V3.2's
`encoding/encoding_dsv32.py`; llama.cpp's templates for DeepSeek V4. Qwen3-Coder leaves out the outer tag or a
parameter's end at times: vLLM's tests of its parsers `qwen3coder` and `qwen3xml` have both.
"""

from __future__ import annotations

import re

from twinline.gateway.text.calls.call import LONGEST_HEAD
from twinline.gateway.text.calls.format import CallFormat, Written, shown
from twinline.gateway.text.calls.marked_call import MarkedCall, Marks
from twinline.gateway.text.calls.typed import TEXT

TAG, END_TAG = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
ARG_KEY, ARG_VALUE = "<arg_key>", "<arg_value>"
DSML = "｜DSML｜"
_INVOKE = f'<{DSML}invoke name="'
_LENGTH = f"{{0,{LONGEST_HEAD}}}"  # of a key: one without an end must not be looked for through the whole text
_MANNER = "A call is written so, with one such part for each argument, objects and arrays as JSON:"


def _marked(
    name: str,
    marks: Marks,
    written: Written,
    parameter: str,
    *,
    openers: tuple[str, ...],
    tails: tuple[str, ...] = (),
    inside: tuple[str, ...],
) -> CallFormat:
    return CallFormat(
        name,
        openers=openers,
        tails=tails,
        read=lambda functions, opener: MarkedCall(marks, functions, opener),
        describe=shown(written.one("FUNCTION_NAME", parameter), _MANNER),
        written=written,
        inside=inside,
    )


QWEN3_CODER = _marked(
    "qwen3_coder",
    Marks(
        begins=FUNCTION,
        named=">",
        parameter=PARAMETER,
        head=re.compile(rf"<parameter=(?P<key>[^>]{_LENGTH})>"),
        value_ends="</parameter>",
        ends=("</function>", END_TAG),
        lines=True,
        untyped=TEXT,
        implied=END_TAG,
    ),
    Written(f"{TAG}\n{FUNCTION}{Written.NAME}>\n", f"</function>\n{END_TAG}", "\n", style="qwen_xml"),
    f"{PARAMETER}PARAMETER_NAME>\nVALUE\n</parameter>\n",
    openers=(TAG, FUNCTION),
    tails=(END_TAG,),
    inside=(END_TAG,),
)


def _glm(name: str, line: str) -> CallFormat:
    """`line`: what stands between two marks."""
    return _marked(
        name,
        Marks(
            begins="",
            named="",
            parameter=ARG_KEY,
            head=re.compile(rf"<arg_key>(?P<key>[^<]{_LENGTH})</arg_key>\s*<arg_value>"),
            value_ends="</arg_value>",
            ends=(END_TAG,),
        ),
        Written(f"{TAG}{Written.NAME}{line}", END_TAG, line, style="glm_xml"),
        f"{ARG_KEY}PARAMETER_NAME</arg_key>{line}{ARG_VALUE}VALUE</arg_value>{line}",
        openers=(TAG,),
        inside=(END_TAG, ARG_KEY, "</arg_key>", ARG_VALUE, "</arg_value>"),
    )


GLM45, GLM47 = _glm("glm45", "\n"), _glm("glm47", "")


def _dsml(name: str, section: str) -> CallFormat:
    """`section`: the name of the mark around all calls."""
    opens, closes = f"<{DSML}{section}>", f"</{DSML}{section}>"
    return _marked(
        name,
        Marks(
            begins=_INVOKE,
            named='">',
            parameter=f'<{DSML}parameter name="',
            head=re.compile(rf'<{DSML}parameter name="(?P<key>[^"]{_LENGTH})" string="(?P<string>true|false)">'),
            value_ends=f"</{DSML}parameter>",
            ends=(f"</{DSML}invoke>",),
        ),
        Written(
            f'{_INVOKE}{Written.NAME}">\n', f"</{DSML}invoke>", "\n", f"{opens}\n", f"\n{closes}", style="deepseek_xml"
        ),
        f'<{DSML}parameter name="PARAMETER_NAME" string="true|false">VALUE</{DSML}parameter>\n',
        openers=(opens, _INVOKE),
        tails=(closes,),
        inside=(DSML,),
    )


DEEPSEEK_V32, DEEPSEEK_V4 = _dsml("deepseek_v32", "function_calls"), _dsml("deepseek_v4", "tool_calls")
