"""What `schemathesis` does not know of a gateway: which model it has, and that answers should be short.

Owns the change of valid requests. `hostile.py` names this file to it (SCHEMATHESIS_HOOKS); requests that are to be
refused stay as they were made.
"""

from __future__ import annotations

import random
from typing import Any

import schemathesis

MODELS = ("played", "played", "played", "played@a", "nothing")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_NEVER = ("timeout_s", "min_tokens")
_SELDOM = (
    "tools", "tool_choice", "functions", "response_format", "stream_options", "top_logprobs", "chat_template_kwargs",
    "continue_final_message", "echo", "return_token_ids", "suffix", "best_of",
)  # fmt: skip
REFUSED = "Refused"  # how the document describes a field that is
SELDOM = 0.1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or not isinstance(case.body, dict):
        return
    body = case.body
    if "model" in body:
        body["model"] = random.choice(MODELS)
    shapes = case.operation.schema.raw_schema["components"]["schemas"].values()
    refused = {
        name
        for shape in shapes
        for name, told in shape.get("properties", {}).items()
        if told.get("description", "").startswith(REFUSED)
    }
    for name in refused | set(_SELDOM):
        if name in body and name != "prompt" and random.random() > SELDOM:  # else nearly nothing would be answered
            del body[name]
    for name in _NEVER:
        body.pop(name, None)
    for name in LIMITS:
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 64)
    if not any(name in body for name in LIMITS) and "tokens" not in body:
        body["max_output_tokens" if "input" in body else "max_tokens"] = 8
