"""The request as one line gets it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from twinline.gateway.segment import asked_of
from twinline.lines.line import Line
from twinline.lines.protocol import TokenRequest, VectorRequest

LINE = cast(Line, SimpleNamespace(model="m", context=64))


def test_an_answer_gets_what_fits_after_its_prompt() -> None:
    request = TokenRequest(model="m", prompt=[5] * 60, request_id="a", max_tokens=10)
    assert asked_of(LINE, request, 1, [], None, 0.0).max_tokens == 4


def test_texts_to_make_vectors_of_share_no_context() -> None:
    request = VectorRequest(model="m", prompt=[5] * 160, request_id="a", inputs=[[5] * 40] * 4)
    assert asked_of(LINE, request, 1, [], None, 0.0) is request
