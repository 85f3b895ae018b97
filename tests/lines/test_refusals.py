"""What a line means by an answer that is no stream."""

from __future__ import annotations

import msgspec
import pytest

from twinline.gateway.faults import is_fault
from twinline.lines.refusals import refusal_of


@pytest.mark.parametrize(
    "words",
    [
        "The engine is currently busy and cannot accept new requests. Please try again later or elsewhere.",
        "The engine has reached its prefill token backlog limit. Please try again later or on a different instance.",
        "The request queue is full.",
        "server busy, please try again.  maximum pending requests exceeded",
    ],
)
def test_a_full_queue_is_no_fault_of_its_line(words: str) -> None:
    """vLLM's, SGLang's and Ollama's words for it come with a 503."""
    in_openais_shape = {"error": {"message": words, "type": "Service Unavailable", "param": None, "code": 503}}
    for body in (in_openais_shape, {"error": words}):
        refusal = refusal_of(503, msgspec.json.encode(body), {b"retry-after": b"3"})
        assert (refusal.status, refusal.message, refusal.retry_after) == (429, words, "3")
        assert not is_fault(refusal)


def test_other_words_with_a_503_are_a_fault() -> None:
    refusal = refusal_of(503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', {})
    assert refusal.status == 503
    assert is_fault(refusal)
