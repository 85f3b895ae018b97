"""The tiny model's 96 tokens as letters, so that its answers are texts which a grammar can be about."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tests.engine.tiny import EOS, VOCAB, ask

from twinline.engine.grammars.constraint import Constraint
from twinline.engine.grammars.grammar import Grammar
from twinline.engine.grammars.library import Library, installed
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.engine.request import Request

if not installed():
    pytest.skip("xgrammar is not installed", allow_module_level=True)

# Printable ASCII, a token a letter, but for the end token (which would be `'`) and the last two.
NEWLINE, THINK = VOCAB - 1, VOCAB - 2
PIECES = tuple(b"" if i == EOS else b"\n" if i == NEWLINE else b"<think>" if i == THINK else bytes([32 + i])
               for i in range(VOCAB))  # fmt: skip
STOPS = frozenset([EOS])


@functools.cache
def library() -> Library:
    return Library(Vocabulary(PIECES, frozenset([EOS])))


@functools.cache
def _compiled(kind: str, text: str) -> Any:
    return library().read(library().compile(Grammar(kind, text)), kind)


def constraint(kind: str, text: str, after: str = "", opener: str = "", stops: frozenset[int] = STOPS) -> Constraint:
    grammar = Grammar(kind, text, after, opener)
    return Constraint(_compiled(kind, text), grammar, PIECES, stops, VOCAB)


def ids(text: str) -> list[int]:
    return [PIECES.index(letter.encode()) for letter in text]


def text_of(tokens: list[int] | tuple[int, ...]) -> str:
    return b"".join(PIECES[t] for t in tokens).decode()


def held(name: str, kind: str, text: str, *, after: str = "", opener: str = "", **more: Any) -> Request:
    """A request with a grammar; `more` as in `tiny.ask`."""
    more.setdefault("stop_token_ids", STOPS)
    request = ask(name, **({"temperature": 1.0, "seed": len(name), "max_tokens": 120} | more))
    request.constraint = constraint(kind, text, after, opener, more["stop_token_ids"])
    return request
