"""A grammar as an output grows, is guessed ahead of, and goes on from another line."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tests.engine.grammars.lettered import EOS, PIECES, THINK, constraint, ids, library

from twinline.engine.grammars.constraint import Constraint
from twinline.engine.grammars.grammar import BadGrammar, Grammar

SCHEMA = json.dumps({"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]})


def may(held: Constraint, output: list[int], guessed: tuple[int, ...] = ()) -> set[str] | None:
    """The letters that may follow; `END` for the end."""
    words = held.allowed(output, guessed)
    if words is None:
        return None
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(PIECES)]
    return {"END" if i == EOS else PIECES[i].decode() for i in np.flatnonzero(bits)}


def test_what_may_follow_is_what_the_grammar_says() -> None:
    held = constraint("regex", "ab?[cd]+")
    seen = [may(held, ids("abcc"[:n])) for n in range(5)]
    assert seen == [{"a"}, {"b", "c", "d"}, {"c", "d"}, {"c", "d", "END"}, {"c", "d", "END"}]


def test_an_output_that_breaks_it_is_told() -> None:
    with pytest.raises(ValueError, match="output token 1"):
        constraint("regex", "ab?[cd]+").allowed(ids("axc"))


def test_guesses_leave_no_trace() -> None:
    """Whatever is guessed, right, wrong or beyond the end, what follows the output stays the same."""
    rng = random.Random(7)
    texts = ['{"a":1}', '{ "a" : 22 }', '{\n"a":22}']
    for text in texts:
        whole = ids(text)
        held, plain = constraint("json_schema", SCHEMA), [may(constraint("json_schema", SCHEMA), whole[:n])
                                                           for n in range(len(whole) + 1)]  # fmt: skip
        at = 0
        while at <= len(whole):
            for _ in range(3):
                guess = whole[at : at + rng.randrange(5)]
                if rng.random() < 0.5:
                    guess = [*guess, rng.randrange(len(PIECES)), rng.randrange(len(PIECES))]
                for n in range(len(guess) + 1):
                    found = may(held, whole[:at], tuple(guess[:n]))
                    right = guess[:n] == whole[at : at + n]
                    assert found == plain[at + n] if right else found is None or found
                assert may(held, whole[:at]) == plain[at]
            if at < len(whole):
                assert held.verdict(whole[:at], whole[at]) is None
            at += 1


def test_a_grammar_waits_for_the_end_of_reasoning() -> None:
    held = constraint("regex", "yes|no", after="</t>")
    everything = may(held, [])
    assert everything is not None and "END" not in everything and len(everything) == len(PIECES) - 1
    said = ids("yes? </t")
    assert may(held, said) == everything
    assert may(held, said, tuple(ids(">"))) == {"y", "n"}
    assert may(held, said, tuple(ids("!"))) == everything  # the guess before is taken back
    assert may(held, [*said, *ids(">y")]) == {"e"}
    assert may(constraint("regex", "yes|no", after="</t>"), [*said, *ids(">yes")]) == {"END"}


def test_reasoning_only_where_the_output_opens_with_it() -> None:
    for opened in (True, False):
        held = constraint("regex", "yes|no", after="</t>", opener="<think>")
        assert may(held, []) == {"y", "n", "<think>"}
        assert may(held, [], (THINK,)) is not None and len(may(held, [], (THINK,)) or ()) == len(PIECES) - 1
        assert may(held, [], tuple(ids("y"))) == {"e"}
        output = [THINK, *ids("so</t>")] if opened else []
        assert may(held, output) == ({"y", "n"} if opened else {"y", "n", "<think>"})
        assert may(held, [*output, *ids("no")]) == {"END"}


def test_an_answer_without_stop_tokens_ends_where_nothing_may_follow() -> None:
    held = constraint("regex", "ab", stops=frozenset())
    assert held.verdict([], ids("a")[0]) is None
    assert held.verdict(ids("a"), ids("b")[0]) == "stop"
    assert constraint("regex", "ab").verdict(ids("a"), ids("b")[0]) is None  # its stop token follows


def test_a_grammar_that_this_vocabulary_cannot_spell() -> None:
    held = constraint("regex", "aé")
    assert held.verdict([], ids("a")[0]) == "error"
    assert "no token" in held.why
    with pytest.raises(BadGrammar, match="no text of this vocabulary"):
        library().compile(Grammar("regex", "é"))


@pytest.mark.parametrize(
    ("kind", "text", "blamed"),
    [
        ("regex", "(a", "parenthesis"),
        ("regex", "(?=a)b", "look-around is not"),
        ("regex", r"(a)\1", "back-references are not"),
        ("ebnf", "root ::= other", "other"),
        ("ebnf", 'other ::= "a"', "root"),
        ("ebnf", 'root ::= root "a"', "no text"),
        ("structural_tag", "{}", "format"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 1}', "minimum"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_words(kind: str, text: str, blamed: str) -> None:
    with pytest.raises(BadGrammar, match=blamed) as error:
        library().compile(Grammar(kind, text))
    assert ".cc:" not in str(error.value)


def test_raw_control_characters_are_no_part_of_json() -> None:
    """xgrammar lets a tab into a string whose length is bounded."""
    from twinline.engine.grammars.library import Library
    from twinline.engine.grammars.vocabulary import Vocabulary

    pieces = (*[bytes([i]) for i in range(128)], b'a\tb"', b"<mark>")
    own = Library(Vocabulary(pieces, frozenset([129])))
    schema = Grammar("json_schema", '{"type": "string", "maxLength": 128}')
    held = Constraint(own.read(own.compile(schema), schema.kind), schema, pieces, frozenset(), len(pieces))
    words = held.allowed([pieces.index(b'"')])
    assert words is not None
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(pieces)]
    assert {pieces[i] for i in np.flatnonzero(bits)} == {bytes([i]) for i in range(32, 128)} - {b"\\"}
    Draft202012Validator(json.loads(schema.text)).validate("\x7f")
