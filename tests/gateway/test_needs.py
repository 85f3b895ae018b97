"""What a request needs of a line: what its client asked for, not what a model folder sets by default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.harness import SPEC, served

from twinline.gateway.api_types import CompletionRequest
from twinline.gateway.meters import Meters
from twinline.gateway.sampling import plan
from twinline.gateway.served import UNKNOWN_CONTEXT, Defaults, ModelText
from twinline.lines.line import Line

FOLDER_DEFAULTS = Defaults(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05)


@pytest.mark.parametrize(
    ("asked", "needs"),
    [
        ({}, set()),
        ({"temperature": 0.2, "top_p": 0.5, "stop": "x", "seed": 3}, set()),
        ({"top_k": 5}, {"sampling"}),
        ({"min_tokens": 2}, {"sampling"}),
        ({"repetition_penalty": 1.1}, {"sampling"}),
        ({"repetition_penalty": 1.0, "top_k": 0}, set()),
        ({"logit_bias": {"5": 1}}, {"logit_bias"}),
        ({"response_format": {"type": "json_object"}}, {"grammar"}),
        ({"response_format": {"type": "text"}}, set()),
        ({"guided_regex": "a"}, {"grammar", "patterns"}),
        ({"structured_outputs": {"choice": ["a"]}, "top_k": 2}, {"grammar", "patterns", "sampling"}),
    ],
)
def test_needs(tiny_folder: Path, asked: dict[str, Any], needs: set[str]) -> None:
    text = replace(ModelText.load(tiny_folder), defaults=FOLDER_DEFAULTS)
    model = served("m", text, [Line("l", SPEC)], Meters())
    request = msgspec.convert({"model": "m", "prompt": "x", **asked}, CompletionRequest)
    made = plan(request, model, request_id="r", max_tokens=8, logprobs=None)
    assert made.needs == needs
    assert made.fields["top_k"] == asked.get("top_k", 20)


@pytest.mark.parametrize("told", [0, -1, True, 2**31, 10**30, 1.5, "512", [512], None])
def test_a_size_that_none_can_be_tells_nothing(tiny_folder: Path, told: object) -> None:
    """Else requests would be measured by it: of a model of -1 tokens none would be taken."""
    line = Line("l", replace(SPEC, context=None))
    line.facts = {"max_model_len": told, "vocab_size": told}
    model = served("m", ModelText.load(tiny_folder), [line], Meters())
    assert line.context is None
    assert (model.max_model_len, model.vocab_size) == (UNKNOWN_CONTEXT, model.tokenizer.vocab_size)
    line.facts = {"max_model_len": 512, "vocab_size": 200_000}
    model.refresh()
    assert (model.max_model_len, model.vocab_size) == (512, 200_000)
