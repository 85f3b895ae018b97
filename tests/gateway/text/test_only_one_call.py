"""An answer of one call ends with that call's last token, however its tokens were cut into reads."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.text.calls.test_parser import FORMATS, FUNCTIONS

from twinline.gateway.text.calls.parser import CallParser
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.transcript import Piece, TextRules, Transcript
from twinline.lines.wire import Delta, TokenLogprob


def given(tokenizer: Tokenizer, name: str, text: str, size: int) -> tuple[list[int], list[Piece], int]:
    """The journal, the pieces and how many log-probabilities came with them, of reads of `size` tokens."""
    ids = tokenizer.encode(text, special=False)
    transcript = Transcript(tokenizer, TextRules(), None, calls=CallParser(FORMATS[name][0], FUNCTIONS, only_one=True))
    pieces = []
    for begin in range(0, len(ids), size):
        tokens = ids[begin : begin + size]
        last = begin + size >= len(ids)
        scores = [TokenLogprob(token, -0.1) for token in tokens]
        pieces.append(transcript.push(Delta(tokens, scores, finish_reason="length" if last else None)))
        if pieces[-1].finish is not None:
            break
    return transcript.journal, pieces, sum(len(piece.logprobs or ()) for piece in pieces)


@pytest.mark.parametrize("name", FORMATS)
def test_the_journal_ends_where_the_call_does(name: str, tiny: Tokenizer) -> None:
    for _, text, calls in FORMATS[name][1]:
        if not calls:
            continue
        text += " and more that nobody asked for 東京"
        alone, singles, scored = given(tiny, name, text, 1)
        for size in (2, 3, 7, 1000):
            journal, pieces, scores = given(tiny, name, text, size)
            assert (journal, scores) == (alone, scored)
            assert said(pieces) == said(singles)
        if singles[-1].finish == "tool_calls":
            assert len(alone) < len(tiny.encode(text, special=False))


def said(pieces: list[Piece]) -> tuple[str, str, str | None]:
    """The content, the arguments of calls, and the end."""
    content = "".join(text for piece in pieces for _, text in piece.parts)
    calls: list[Any] = [call for piece in pieces for call in piece.tool_calls or ()]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    return content, arguments, pieces[-1].finish
