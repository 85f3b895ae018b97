"""Grammars in the engine: in a mixed batch, through speculation and preemption, and on from another line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from tests.engine.grammars.lettered import EOS, THINK, held, ids, text_of
from tests.engine.tiny import VOCAB, alone, ask, drain, heard, load_tiny, make_engine, write_checkpoint

from twinline.engine.build import Built
from twinline.engine.graphs import DecodeGraphs
from twinline.engine.loop import Engine
from twinline.engine.ngram import Lookup
from twinline.engine.ops.cpu import library
from twinline.engine.request import Request
from twinline.engine.speculation import Speculation

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 99}, "maxItems": 3},
        "name": {"type": "string", "maxLength": 5},
    },
    "required": ["colour", "sizes", "name"],
}
EBNF = 'root ::= "<" word ("," word)* ">"\nword ::= [a-c]{1,3}'
CASES: list[tuple[str, str, Callable[[str], bool]]] = [
    ("json_schema", json.dumps(SCHEMA), lambda text: Draft202012Validator(SCHEMA).is_valid(json.loads(text))),
    ("regex", "(yes|no|maybe)!{2,4}", lambda text: bool(re.fullmatch("(yes|no|maybe)!{2,4}", text))),
    ("ebnf", EBNF, lambda text: bool(re.fullmatch("<[a-c]{1,3}(,[a-c]{1,3})*>", text))),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    torch.set_num_threads(1)
    return load_tiny(write_checkpoint(tmp_path_factory.mktemp("tiny")))


def run(built: Built, *requests: Request, speculation: bool = False, **limits: Any) -> Engine:
    engine = make_engine(built, **limits)
    if speculation:
        engine.speculation = Speculation(8, Lookup())
    for request in requests:
        engine.submit(request)
    drain(engine)
    return engine


def said(engine: Engine, name: str) -> str:
    """The text of an answer that came to its end."""
    last = heard(engine).last(name)
    assert (last.finish, last.stop_token) == ("stop", EOS), last
    return text_of(heard(engine).tokens(name))


def test_each_row_of_a_batch_keeps_to_its_own(built: Built) -> None:
    """Greedy and drawn, filtered and penalised ones side by side; those without a grammar do not notice."""
    settings: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5, "seed": 5},
                                      {"repetition_penalty": 1.2}, {"min_p": 0.2, "logprobs": 2}]  # fmt: skip
    # With greedy and cold ones the small model would fill a gap with spaces for ever: they are allowed, and likeliest.
    bias = {"logit_bias": ((ids(" ")[0], -50.0), (ids('"')[0], 5.0), (VOCAB - 1, -50.0))}
    asked = [held(f"{kind} {i}", kind, text, **({"max_tokens": 150} | bias | setting))
             for i, setting in enumerate(settings) for kind, text, _ in CASES]  # fmt: skip
    plain = [ask(f"plain {i}", 9 + i, max_tokens=20, temperature=i % 2, seed=i) for i in range(4)]
    engine = run(built, *asked, *plain, max_running=22, pages=1200, max_tokens_per_step=64)
    for number in range(len(settings)):
        for kind, _, fits in CASES:
            assert fits(said(engine, f"{kind} {number}")), kind
    for request in plain:
        expected = [t for o in alone(built, request) for t in o.tokens]
        assert heard(engine).tokens(request.id) == expected


@pytest.mark.parametrize("kind", [0, 2])
def test_guesses_and_preemption_change_nothing(built: Built, kind: int) -> None:
    """The same answers with n-gram speculation, and with so few pages that requests are computed over and over."""
    name, text, fits = CASES[kind]
    prompt = ids('<a,b,a,b,a,b> yes!!! {"colour":"red","sizes":[1],"name":"x"} {"colour":"red","sizes":[1],')

    def asked() -> list[Request]:
        return [held(f"r{i}", name, text, prompt=prompt, seed=i, temperature=0.9) for i in range(5)]

    plain = run(built, *asked(), pages=1000)
    guessed = run(built, *asked(), pages=1000, speculation=True)
    crowded = run(built, *asked(), pages=75)
    assert crowded.scheduler.preemptions > 0 or kind
    assert guessed.counters.draft_tokens > 0 and (guessed.counters.accepted_tokens > 0 or kind)
    for i in range(5):
        answers = {text_of(heard(engine).tokens(f"r{i}")) for engine in (plain, guessed, crowded)}
        assert len(answers) == 1 and heard(plain).finish(f"r{i}") == heard(guessed).finish(f"r{i}")
        if heard(plain).finish(f"r{i}") == "stop":
            assert fits(answers.pop())


def test_an_answer_goes_on_from_any_token_of_it(built: Built) -> None:
    kind, text, fits = CASES[0]
    whole = heard(run(built, held("r", kind, text, seed=3), pages=200)).tokens("r")
    assert fits(text_of(whole))
    for cut in range(1, len(whole), 11):
        rest = heard(run(built, held("r", kind, text, seed=3, output=whole[:cut]), pages=200)).tokens("r")
        assert whole[:cut] + rest == whole


def test_a_grammar_begins_after_reasoning(built: Built) -> None:
    kind, text, fits = CASES[1]
    for opener, prefix in (("", []), ("<think>", [THINK])):
        bias = ((ids("/")[0], 30.0), (ids(">")[0], 30.0))
        request = held("r", kind, text, after="/>/", opener=opener, output=prefix, logit_bias=bias)
        engine = run(built, request, pages=200)
        reasoning, _, answer = text_of([*prefix, *heard(engine).tokens("r")]).partition("/>/")
        assert reasoning.startswith(opener) and fits(answer)
        assert heard(engine).finish("r") == "stop"


def test_a_bias_or_min_tokens_does_not_break_it(built: Built) -> None:
    want_x = ((ids("x")[0], 100.0),)
    engine = run(built, held("bias", "regex", "(ab)+", logit_bias=want_x), held("min", "regex", "ab", min_tokens=9),
                 held("forbidden", "regex", "ab", logit_bias=((ids("a")[0], -1e30),)))  # fmt: skip
    assert re.fullmatch("(ab)+", text_of(heard(engine).tokens("bias")))
    assert said(engine, "min") == said(engine, "forbidden") == "ab"


def test_without_an_end_token_an_answer_ends_all_the_same(built: Built) -> None:
    engine = run(built, held("r", "regex", "abc", stop_token_ids=frozenset()))
    last = heard(engine).last("r")
    assert (text_of(heard(engine).tokens("r")), last.finish, last.stop_token) == ("abc", "stop", None)


@pytest.mark.parametrize("speculation", [False, True])
def test_a_dead_end_ends_one_request_and_says_why(built: Built, speculation: bool) -> None:
    requests = held("dead", "regex", "(ab){5}é", prompt=ids("abababababab")), held("fine", "regex", "ab")
    engine = run(built, *requests, speculation=speculation)
    last = heard(engine).last("dead")
    assert (last.finish, text_of(heard(engine).tokens("dead"))) == ("error", "ab" * 5)
    assert last.error is not None and "no token" in last.error
    assert said(engine, "fine") == "ab" and engine.failure is None


def test_log_probabilities_are_of_the_model_itself(built: Built) -> None:
    """As vLLM's: what the grammar forbids may be among the likeliest."""
    engine = run(built, held("r", "regex", "abc", logprobs=3, temperature=0.0))
    entries = [p for o in heard(engine).outputs["r"] for p in o.logprobs]
    assert [e.token for e in entries] == heard(engine).tokens("r")
    assert any(e.rank > 1 for e in entries) and all(len(e.top) == 3 for e in entries)


@pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
def test_a_grammar_leaves_the_recorded_steps_to_the_batch(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps are replayed with a grammar in the batch too."""
    replayed: list[bool] = []
    hidden = DecodeGraphs.hidden

    def seen(self: DecodeGraphs, batch: Any) -> Any:
        found = hidden(self, batch)
        if not batch.plan.prefills:
            replayed.append(found is not None)
        return found

    monkeypatch.setattr(DecodeGraphs, "hidden", seen)
    engine = run(built, held("r", *CASES[0][:2]), ask("plain", max_tokens=20), pages=200)
    assert engine.runner.graphs.why_not is None
    assert replayed and all(replayed)


def test_an_output_that_has_left_its_grammar_ends_that_request_alone(built: Built) -> None:
    """Whatever let it: the library may allow a token and then not take it."""
    fine = held("fine", "regex", "(ab){9}"), ask("plain", ids("ab"), max_tokens=12)
    engine = run(built, held("lost", "regex", "(ab)+", output=ids("abx")), *fine)
    last = heard(engine).last("lost")
    assert last.finish == "error" and last.error is not None and "output token 2" in last.error
    assert said(engine, "fine") == "ab" * 9 and len(heard(engine).tokens("plain")) == 12
    assert engine.failure is None
