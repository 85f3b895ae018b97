"""How a vector is written, and how much one answer may have of them."""

from __future__ import annotations

import base64
import json
import tracemalloc
from types import SimpleNamespace
from typing import cast

import numpy as np

from twinline.gateway.choice import Choice
from twinline.gateway.embeddings import Input, _Whole
from twinline.gateway.vectors import MAX_BASE64_VALUES, MAX_FLOATS, VectorPiece, too_many, written


def test_a_number_has_no_digits_that_float32_does_not_have() -> None:
    assert (
        written(np.array([0.1, -0.5, 3.0, 0.0], "<f4").tobytes(), None, as_base64=False)
        == b"[0.100000001,-0.5,3.0,0.0]"
    )
    drawn = np.random.default_rng(0).standard_normal(4096)
    values = (drawn / np.linalg.norm(drawn)).astype("<f4")
    assert len(written(values.tobytes(), None, as_base64=False)) < 14 * 4096  # as doubles: more than 21 a value


def test_how_many_values_one_answer_has() -> None:
    assert too_many(1024, 4096, as_base64=False) is None and too_many(2048, 8192, as_base64=True) is None
    error = too_many(2048, 4096, as_base64=False)
    assert error is not None and (error.status, error.param) == (400, "input")
    assert error.message == (
        f'2048 vectors of 4096 values are 8388608 values; one answer has at most {MAX_FLOATS} as "float": send at most '
        f'1024 texts at once, or ask for encoding_format "base64", of which it has {MAX_BASE64_VALUES}.'
    )
    error = too_many(2048, 8193, as_base64=True)
    assert error is not None and error.message.endswith("send at most 2047 texts at once.")
    error = too_many(1, MAX_FLOATS + 1, as_base64=False)
    assert error is not None and "ask for fewer dimensions" in error.message


def test_the_answer_is_not_held_twice() -> None:
    parts = [[Input([1], None)] * 8 for _ in range(40)]
    shape = _Whole("m", parts, None, as_base64=True)
    vector = bytes(range(256)) * 64
    tracemalloc.start()
    try:
        for index in reversed(range(len(parts))):
            shape.news(VectorPiece(index, [], [], finish="stop", vectors=[vector] * 8))
        tracemalloc.reset_peak()
        body = shape.end(cast(list[Choice], [SimpleNamespace(prompt_tokens=3)] * len(parts)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    answer = json.loads(body)
    assert answer["usage"]["total_tokens"] == 120
    assert [entry["index"] for entry in answer["data"]] == list(range(320))
    assert all(base64.b64decode(entry["embedding"]) == vector for entry in answer["data"])
    assert peak < 1.4 * len(body)
