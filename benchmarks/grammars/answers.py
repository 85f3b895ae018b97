"""Answers of a model that are held to random JSON schemas, many in one batch, and whether they validate.

Owns the engine that answers and the judging. Knows no HTTP: what is judged is the engine's tokens as text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.grammars.schemas import schemas
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from jsonschema import Draft202012Validator, SchemaError, ValidationError

from twinline.engine.build import Options, build
from twinline.engine.grammars.constraint import Constraint
from twinline.engine.grammars.grammar import BadGrammar, Grammar
from twinline.engine.grammars.library import Library
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.worker import end_tokens

CLOSING = 6.0  # bias of tokens that close something: a small model's text would seldom end
IN_BATCH = 32


@dataclass
class Verdicts:
    """How the answers fared. `invalid`: schema, text and what is wrong with it."""

    counts: Counter[str] = field(default_factory=Counter)
    invalid: list[tuple[dict[str, Any], str, str]] = field(default_factory=list)
    refused: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    tokens: int = 0


def drawn(count: int) -> list[dict[str, Any]]:
    """The first `count` different schemas that hypothesis draws; the same at each call."""
    found: dict[str, dict[str, Any]] = {}

    @settings(
        max_examples=4 * count, phases=[Phase.generate], derandomize=True, database=None, deadline=None,
        verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(schemas())
    def collect(schema: dict[str, Any]) -> None:
        found.setdefault(json.dumps(schema), schema)

    collect()
    return list(found.values())[:count]


def answers(folder: Path, wanted: Sequence[dict[str, Any]], *, max_tokens: int = 700, **options: Any) -> Verdicts:
    """Asks the model in `folder` for one answer to each schema, at temperature 1, and judges them."""
    verdicts = Verdicts()
    texts: dict[str, list[int]] = {}
    ends: dict[str, Output] = {}

    def deliver(outputs: Sequence[Output]) -> None:
        for output in outputs:
            texts[output.request_id] += output.tokens
            if output.finish:
                ends[output.request_id] = output

    built = build(folder, Options(device="cpu", dtype="float32", max_running=IN_BATCH, **options), deliver)
    vocabulary = Vocabulary.load(folder, built.spec.vocab)
    library = Library(vocabulary)
    eos = end_tokens(folder)
    bias = tuple((i, CLOSING) for i, piece in enumerate(vocabulary.pieces) if piece[:1] in (b'"', b"}", b"]") and piece)
    waiting = list(enumerate(wanted))
    judged: set[str] = set()
    by_id: dict[str, dict[str, Any]] = {}
    while waiting or built.engine.scheduler.has_work:
        while waiting and len(built.engine.scheduler.live) < IN_BATCH:
            number, schema = waiting.pop(0)
            grammar = Grammar("json_schema", json.dumps(schema))
            try:
                compiled = library.read(library.compile(grammar), grammar.kind)
            except BadGrammar as error:
                verdicts.refused.append((schema, str(error)))
                verdicts.counts["refused"] += 1
                continue
            name = f"r{number}"
            params = SamplingParams(max_tokens=max_tokens, seed=number, stop_token_ids=eos, logit_bias=bias)
            request = Request(name, [3, 20 + number % 900, 4], params)
            request.constraint = Constraint(compiled, grammar, vocabulary.pieces, eos, built.spec.vocab)
            by_id[name], texts[name] = schema, []
            built.engine.submit(request)
        built.engine.step()
        for name in ends.keys() - judged:
            judged.add(name)
            _judge(verdicts, by_id[name], texts[name], ends[name], vocabulary.pieces, eos)
    return verdicts


def _judge(
    verdicts: Verdicts,
    schema: dict[str, Any],
    tokens: list[int],
    end: Output,
    pieces: Sequence[bytes],
    eos: frozenset[int],
) -> None:
    verdicts.tokens += len(tokens)
    verdicts.counts[end.finish or "none"] += 1
    if end.finish != "stop":
        return
    said = b"".join(pieces[t] for t in tokens if t not in eos)
    try:
        text = said.decode()
        Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, ValidationError, SchemaError) as error:
        verdicts.invalid.append((schema, repr(said), str(error).splitlines()[0]))
        verdicts.counts["invalid"] += 1
    else:
        verdicts.counts["valid"] += 1
