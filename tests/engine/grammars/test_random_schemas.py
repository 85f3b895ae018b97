"""Answers of tiny-r1 that are held to random schemas validate; `python -m benchmarks.grammars` does 500 of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import twinline
from twinline.engine.grammars.library import installed

pytestmark = pytest.mark.skipif(not installed(), reason="xgrammar is not installed")


def test_answers_to_random_schemas_validate() -> None:
    from benchmarks.grammars.answers import answers, drawn

    wanted = drawn(24)
    folder = Path(twinline.__file__).parent / "models" / "tiny-r1"
    verdicts = answers(folder, wanted, max_tokens=150, threads=1, speculation="ngram")
    assert not verdicts.refused and not verdicts.invalid
    assert verdicts.counts["valid"] >= len(wanted) // 2  # the others have not come to their end
    assert verdicts.counts["valid"] + verdicts.counts["length"] == len(wanted)
