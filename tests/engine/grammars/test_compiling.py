"""Grammars compiled in another process: kept, refused, and bounded whatever they are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import twinline
from twinline.engine.grammars import compiling
from twinline.engine.grammars.compiling import Grammars
from twinline.engine.grammars.grammar import BadGrammar, Grammar
from twinline.engine.grammars.library import installed
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.engine.scheduler import QueueFull
from twinline.facts.models import read_spec

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")

FOLDER = Path(twinline.__file__).parent / "models" / "tiny-r1"
VOCAB = read_spec(FOLDER).vocab
DIGITS = Grammar("regex", "[0-9]{2}")
ENDLESS = Grammar(
    "json_schema",
    json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 9999} for i in range(900)}}),
)
EOS = frozenset([1])

Made = Callable[[Grammars], Awaitable[None]]


@pytest.fixture
def run() -> Callable[[Made], None]:
    """Runs a test's coroutine with grammars of its own."""

    def go(work: Made) -> None:
        async def whole() -> None:
            grammars = Grammars(FOLDER, VOCAB)
            try:
                await work(grammars)
            finally:
                grammars.close()

        asyncio.run(whole())

    return go


def pid(grammars: Grammars) -> int:
    assert grammars._process is not None
    return grammars._process.pid


def test_compiled_once_refused_once_and_hostile_ones_bounded(
    run: Callable[[Made], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process for all of it, so that it starts seldom."""

    async def work(grammars: Grammars) -> None:
        held = await asyncio.gather(*[grammars.constraint(DIGITS, EOS, []) for _ in range(5)])
        assert len({id(h) for h in held}) == 5 and len(grammars._kept) == 1
        first = pid(grammars)
        words = held[0].allowed([])
        assert words is not None and words.any()
        for _ in range(2):
            with pytest.raises(BadGrammar, match="parenthesis"):
                await grammars.constraint(Grammar("regex", "(a"), EOS, [])
        assert pid(grammars) == first and len(grammars._kept) == 2
        vocabulary = Vocabulary.load(FOLDER, VOCAB)
        seven, letter = vocabulary.pieces.index(b"7"), vocabulary.pieces.index(b"a")
        await grammars.constraint(DIGITS, EOS, [seven, seven])
        with pytest.raises(ValueError, match="output token 1"):
            await grammars.constraint(DIGITS, EOS, [seven, letter])
        # It is given up, its process is ended, and the next grammar gets another.
        monkeypatch.setattr(compiling, "WALL_SECONDS", 2.5)
        before = grammars.seconds
        asked = asyncio.ensure_future(grammars.constraint(ENDLESS, EOS, []))
        await asyncio.sleep(1.2)
        assert not asked.done() and grammars.seconds > before  # who watches the line sees it compute
        with pytest.raises(BadGrammar, match="simplify it"):
            await asked
        assert grammars.seconds >= before + 2
        monkeypatch.setattr(compiling, "WALL_SECONDS", 100.0)
        assert grammars._process is None
        await grammars.constraint(Grammar("regex", "[0-9]{3}"), EOS, [])
        # Ended by the system, as for its time or memory.
        asked = asyncio.ensure_future(grammars.constraint(Grammar("regex", "[a-c]{900}"), EOS, []))
        os.kill(pid(grammars), signal.SIGXCPU)
        with pytest.raises(BadGrammar, match="simplify it"):
            await asked
        await grammars.constraint(DIGITS, EOS, [])  # kept

    run(work)


def test_so_many_wait_and_no_more(run: Callable[[Made], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(grammars: Grammars) -> None:
        await grammars._one.acquire()
        waiting = [asyncio.ensure_future(grammars.constraint(Grammar("regex", "a" * n), EOS, [])) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await grammars.constraint(DIGITS, EOS, [])
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert grammars._waiting == 0

    monkeypatch.setattr(compiling, "MOST_WAITING", 2)
    run(work)


def test_a_line_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    grammars = Grammars(tmp_path, VOCAB)
    assert not grammars.supported
    with pytest.raises(BadGrammar, match="xgrammar"):
        asyncio.run(grammars.constraint(DIGITS, EOS, []))


def test_the_bytes_of_a_vocabulary() -> None:
    vocabulary = Vocabulary.load(FOLDER, VOCAB + 10)
    assert vocabulary.pieces[5:7] == (b"<think>", b"</think>") and vocabulary.pieces[VOCAB:] == (b"",) * 10
    assert {0, 1, 3, 4} <= vocabulary.marks and 5 not in vocabulary.marks
    assert b" the" in vocabulary.pieces and {bytes([i]) for i in range(256)} <= set(vocabulary.pieces)


def test_a_tokenizer_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is not a tokenizer that can be read") as error:
        Vocabulary.load(tmp_path, VOCAB)
    assert "\n" not in str(error.value)


def test_a_grammar_whose_every_beginning_ends_the_request_is_refused(run: Callable[[Made], None]) -> None:
    """Taken, it would break in the midst of a step."""

    async def work(grammars: Grammars) -> None:
        digits = frozenset(
            t for t, piece in enumerate(Vocabulary.load(FOLDER, VOCAB).pieces) if piece.strip().isdigit()
        )
        with pytest.raises(BadGrammar, match="all that the grammar allows end the request"):
            await grammars.constraint(Grammar("regex", "[0-9]+"), EOS | digits, [])
        some = await grammars.constraint(Grammar("regex", "[0-9]+x"), EOS | frozenset(list(digits)[:1]), [])
        assert some.allowed([]) is not None

    run(work)
