"""How engines are asked for vectors, and what of their answers is believed; two of these are what engines sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from twinline.lines.drivers import driver
from twinline.lines.drivers.vectors import IdVectors, OllamaVectors, TextVectors
from twinline.lines.protocol import VectorRequest
from twinline.lines.spec import LineSpec

RECORDED = Path(__file__).parents[1] / "recorded"
ASKED = VectorRequest(
    model="m", prompt=[5, 6, 7], request_id="r", inputs=[[5], [6, 7]], texts=["a", "bc"], priority=3, timeout_s=2.5
)


def vectors(body: bytes, count: int = 2) -> list[np.ndarray]:
    return [np.frombuffer(vector, "<f4") for vector in IdVectors().read(body, count).vectors]


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
def test_what_engines_really_answer(engine: str) -> None:
    """The same two texts, the same model: a small random Qwen3 in float32, whose vectors are of length 1."""
    body = (RECORDED / engine / "embeddings.http").read_bytes().partition(b"\r\n\r\n")[2]
    delta = IdVectors().read(body, 2)
    found = vectors(body)
    assert delta.usage is not None and delta.usage.prompt_tokens == 3 and delta.finish_reason == "stop"
    assert [len(vector) for vector in found] == [128, 128]
    assert [float(np.linalg.norm(vector)) for vector in found] == pytest.approx([1, 1], abs=1e-5)
    other = RECORDED / ("llamacpp" if engine == "vllm" else "vllm") / "embeddings.http"
    assert np.abs(np.stack(found) - np.stack(vectors(other.read_bytes().partition(b"\r\n\r\n")[2]))).max() < 1e-3


def spec(engine: str, **fields: Any) -> LineSpec:
    return LineSpec(name="a", model="m", engine=engine, embeds=True, **fields)


@pytest.mark.parametrize(
    ("made", "path", "expected"),
    [
        (spec("native"), "/v1/embeddings", {"input": [[5], [6, 7]], "encoding_format": "base64", "request_id": "r",
                                            "priority": 3, "timeout_s": 2.5}),
        (spec("vllm"), "/v1/embeddings", {"input": [[5], [6, 7]], "encoding_format": "base64", "request_id": "r"}),
        (spec("sglang"), "/v1/embeddings", {"input": [[5], [6, 7]], "encoding_format": "base64"}),
        (spec("llamacpp"), "/v1/embeddings", {"input": [[5], [6, 7]], "encoding_format": "base64"}),
        (spec("openai", url="https://host/v1"), "/embeddings", {"input": ["a", "bc"], "encoding_format": "float"}),
        (spec("openai", url="http://host", options={"extra_body": {"x": 1}}), "/v1/embeddings",
         {"input": ["a", "bc"], "encoding_format": "float", "x": 1}),
        (spec("ollama", context=99, options={"keep_alive": -1}), "/api/embed",
         {"input": ["a", "bc"], "truncate": False, "options": {"num_ctx": 99}, "keep_alive": -1}),
    ],
)  # fmt: skip
def test_what_engines_are_asked(made: LineSpec, path: str, expected: dict[str, Any]) -> None:
    dialect = driver(made.engine).vectors(made)
    assert dialect is not None
    asked, body = dialect.encode(ASKED)
    assert (asked, json.loads(body)) == (path, {"model": "m", **expected})


@pytest.mark.parametrize("dialect", [TextVectors("/v1"), OllamaVectors("m", None, None)])
def test_text_lines_pass_dimensions_on_and_take_no_ids(dialect: TextVectors | OllamaVectors) -> None:
    shorter = msgspec.structs.replace(ASKED, dimensions=64)
    assert json.loads(dialect.encode(shorter)[1])["dimensions"] == 64
    with pytest.raises(ValueError, match="takes text only"):
        dialect.encode(msgspec.structs.replace(ASKED, texts=None))


def data(*entries: Any) -> bytes:
    return json.dumps({"data": [{"index": i, "embedding": entry} for i, entry in enumerate(entries)]}).encode()


def packed(*values: float) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def test_numbers_and_base64_are_the_same_bytes_in_any_order() -> None:
    body = {"data": [{"index": 1, "embedding": [0.1, -2.5]}, {"index": 0, "embedding": packed(3.0, 4.0)}]}
    assert [vector.tolist() for vector in vectors(json.dumps(body).encode())] == [
        [3.0, 4.0],
        np.asarray([0.1, -2.5], "f4").tolist(),
    ]


@pytest.mark.parametrize(
    "body",
    [
        data([1.0]),
        data([1.0], [1.0], [1.0]),
        data([1.0], [1.0, 2.0]),
        data([], []),
        data("", ""),
        data("AAAA", "AAAA"),
        data("?", "?"),
        data([1e300], [1.0]),
        data(packed(1.0), packed(float("nan"))),
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": 5, "embedding": [1]}]}',
        b'{"data": [{"index": 1, "embedding": [1]}, {"index": 1, "embedding": [1]}]}',
        b'{"data": [{"embedding": null}, {"embedding": [1]}]}',
        b'{"error": {"message": "no"}}',
        b"[]",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
        IdVectors().read(body, 2)


@pytest.mark.parametrize("body", [b'{"embeddings": [[1]]}', b'{"embeddings": [[1], []]}', b'{"embedding": [1]}'])
def test_ollamas_answers_that_are_none(body: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        OllamaVectors("m", None, None).read(body, 2)
    assert OllamaVectors("m", None, None).read(b'{"embeddings": [[1], [2]], "prompt_eval_count": 9}', 2).vectors


def test_what_is_not_spoken_to_for_vectors() -> None:
    made: Callable[[LineSpec], Any] = driver("simulated").vectors
    assert made(spec("simulated")) is None
