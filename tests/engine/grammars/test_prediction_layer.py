"""Requests with a grammar on an engine whose prediction layer guesses: the same answers as without guesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engine.driving import Driven
from tests.engine.grammars.lettered import PIECES, STOPS, constraint, ids
from tests.engine.predicting import CONFIG, HALF, folder, patient

from twinline.engine.request import Request, SamplingParams

SCHEMA = json.dumps({"type": "array", "items": {"enum": ["red", "green", 7]}, "minItems": 3, "maxItems": 9})


def answers(line: Driven, **params: Any) -> dict[str, list[int]]:
    for name, kind, text in (("schema", "json_schema", SCHEMA), ("regex", "regex", "(yes|no)!{2,4}"), ("free", "", "")):
        asked = SamplingParams(max_tokens=80, stop_token_ids=STOPS, seed=5, **params)
        request = Request(name, ids("say: "), asked)
        if kind:
            request.constraint = constraint(kind, text)
        line.engine.submit(request)
    line.run()
    return {name: [t for o in outputs for t in o.tokens] for name, outputs in line.outputs.items()}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_layers_guesses_change_no_answer(tmp_path: Path, temperature: float) -> None:
    where = folder(tmp_path, HALF, CONFIG | {"vocab_size": len(PIECES)})
    plain = answers(Driven(where), temperature=temperature)
    line = patient(Driven(where, speculation="mtp"))
    guessed = answers(line, temperature=temperature)
    assert guessed == plain
    assert line.engine.counters.draft_tokens > line.engine.counters.accepted_tokens > 0
    text = b"".join(PIECES[t] for t in plain["schema"]).decode()
    assert {"red", "green", 7} >= set(json.loads(text))
