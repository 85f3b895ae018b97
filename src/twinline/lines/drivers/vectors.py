"""How engines are asked for vectors: OpenAI's `/v1/embeddings`, which all but Ollama speak, and Ollama's own.

Owns these two dialects and the checks of an answer. Must not know when a line is asked. Of llama.cpp and Ollama written
from their public documentation, of vLLM from its source; the native worker's is `engine/vectors.py`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from twinline.lines.protocol import VectorRequest
from twinline.lines.wire import Usage, VectorDelta

_encode = msgspec.json.Encoder().encode


class VectorDialect(Protocol):
    """`features` are those of a line that gives vectors with it (`driver.FEATURES`). `counted`: the engine's own count
    of progress moves while it computes one request, so that it may stand still only where nothing is computed."""

    features: frozenset[str]
    counted: bool

    def encode(self, request: VectorRequest) -> tuple[str, bytes]:
        """Path and JSON body. Raises ValueError for what cannot be said."""

    def read(self, body: bytes, count: int) -> VectorDelta:
        """From a whole answer to `count` texts. Raises ValueError or msgspec.DecodeError for one that is none."""


class _Entry(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _Counts(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Entry]
    usage: _Counts | None = None


class _OllamaAnswer(msgspec.Struct):
    embeddings: list[list[float]]
    prompt_eval_count: int | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_ollama = msgspec.json.Decoder(_OllamaAnswer).decode


class IdVectors:
    """An engine that takes token ids, so that the text is cut here as for every other line of the model."""

    features: frozenset[str] = frozenset({"embeddings", "token_ids"})

    def __init__(self, *, named: bool = False, timed: bool = False, counted: bool = False) -> None:
        """`named`: it takes `request_id` and `priority`; `timed`: `timeout_s`, too."""
        self._named, self._timed = named, timed
        self.counted = counted

    def encode(self, request: VectorRequest) -> tuple[str, bytes]:
        body: dict[str, Any] = {"model": request.model, "input": request.inputs, "encoding_format": "base64"}
        if self._named:
            body["request_id"] = request.request_id
        if self._timed:
            body |= {"priority": request.priority, "timeout_s": request.timeout_s}
        return "/v1/embeddings", _encode(body)

    def read(self, body: bytes, count: int) -> VectorDelta:
        return _read(body, count)


class TextVectors:
    """A remote that has its own tokenizer, and shortens vectors by itself or says that it does not."""

    features: frozenset[str] = frozenset({"embeddings", "dimensions"})
    counted: bool = False

    def __init__(self, base: str, extra: Mapping[str, Any] | None = None) -> None:
        self._base, self._extra = base, dict(extra or {})

    def encode(self, request: VectorRequest) -> tuple[str, bytes]:
        body: dict[str, Any] = {"model": request.model, "input": _texts(request), "encoding_format": "float"}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        return f"{self._base}/embeddings", _encode(body | self._extra)

    def read(self, body: bytes, count: int) -> VectorDelta:
        return _read(body, count)


class OllamaVectors:
    """`/api/embed`. A text that is too long is an error, not cut without a word as is its default."""

    features: frozenset[str] = frozenset({"embeddings", "dimensions"})
    counted: bool = False

    def __init__(self, model: str, context: int | None, keep_alive: object) -> None:
        self._model, self._context, self._keep_alive = model, context, keep_alive

    def encode(self, request: VectorRequest) -> tuple[str, bytes]:
        body: dict[str, Any] = {"model": self._model, "input": _texts(request), "truncate": False}
        if self._context is not None:
            body["options"] = {"num_ctx": self._context}
        if self._keep_alive is not None:
            body["keep_alive"] = self._keep_alive
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        return "/api/embed", _encode(body)

    def read(self, body: bytes, count: int) -> VectorDelta:
        answer = _decode_ollama(body)
        return _checked([_of_numbers(vector) for vector in answer.embeddings], count, answer.prompt_eval_count)


def _texts(request: VectorRequest) -> list[str]:
    if request.texts is None:
        raise ValueError("this line takes text only: a request in token ids cannot be put to it")
    return request.texts


def _read(body: bytes, count: int) -> VectorDelta:
    answer = _decode(body)
    entries = sorted(answer.data, key=lambda entry: entry.index)
    if [entry.index for entry in entries] not in (list(range(count)), [0] * count):  # some number none
        raise ValueError(f"{len(entries)} vectors, numbered otherwise than the {count} texts")
    tokens = None if answer.usage is None else answer.usage.prompt_tokens
    return _checked([_of_entry(entry.embedding) for entry in entries], count, tokens)


def _of_entry(said: str | list[float]) -> bytes:
    if not isinstance(said, str):
        return _of_numbers(said)
    try:
        return base64.b64decode(said, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a vector that is not base64: {error}") from None


def _of_numbers(said: list[float]) -> bytes:
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and found below
        return np.asarray(said, "<f4").tobytes()


def _checked(vectors: Sequence[bytes], count: int, tokens: int | None) -> VectorDelta:
    """Raises ValueError for vectors of unlike or no size, or with what is no number in them."""
    if len(vectors) != count:
        raise ValueError(f"{len(vectors)} vectors for {count} texts")
    sizes = {len(vector) for vector in vectors}
    if len(sizes) != 1 or not (size := sizes.pop()) or size % 4:
        raise ValueError("vectors of unlike sizes, or of none")
    for vector in vectors:
        if not np.isfinite(np.frombuffer(vector, "<f4")).all():
            raise ValueError("a vector with values that are not finite")
    return VectorDelta(vectors=list(vectors), finish_reason="stop", usage=None if tokens is None else Usage(tokens, 0))
