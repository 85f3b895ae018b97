"""Where tokens begin in a completion: offsets are those of the text that is given, also in metaspace vocabularies."""

from __future__ import annotations

import pytest

from twinline.gateway.logprobs import LegacyWriter
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.transcript import TextRules, Transcript
from twinline.lines.wire import Delta, TokenLogprob


@pytest.mark.parametrize("name", ["metaspace", "byte_level", "tiny"])
def test_offsets_cut_the_text_into_its_tokens(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(" the the world", special=False)
    scores = [TokenLogprob(token, -0.1) for token in ids]
    transcript = Transcript(tokenizer, TextRules(), None)
    text = "".join(part for _, part in transcript.push(Delta(tokens=ids, logprobs=scores, finish_reason="stop")).parts)
    offsets = LegacyWriter(tokenizer, 0).write(ids, scores).text_offset
    ends = [*offsets[1:], len(text)]
    shown = [tokenizer.token_bytes(token).decode() for token in ids]
    assert [text[begin:end] for begin, end in zip(offsets, ends, strict=True)] == shown
