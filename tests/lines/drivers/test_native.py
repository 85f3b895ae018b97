"""The native driver: how a fleet's words about precision become the worker's options."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from twinline.lines.drivers.driver import EngineMetrics
from twinline.lines.drivers.native import Native
from twinline.lines.fleet.lines import weights_class
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec


def spec(precision: str = "auto", **options: Any) -> LineSpec:
    return LineSpec(name="a", model="m", engine="native", weights="/m", precision=precision, options=options)


def told(line: LineSpec) -> dict[str, str]:
    """The options among the worker's arguments, but those of every line."""
    Native().check(line)
    argv = Native().command(line, 7000).argv
    pairs = dict(pairwise(argv))
    return {k.removeprefix("--"): v for k, v in pairs.items() if k in ("--dtype", "--weights", "--head-weights")}


@pytest.mark.parametrize("body", [b'{"a": ' + b"[" * 5000, b'{"a": "\xff"}', b"["], ids=["deep", "no text", "cut"])
def test_counters_that_cannot_be_read_are_none(body: bytes) -> None:
    assert Native().metrics(body) == EngineMetrics()


@pytest.mark.parametrize(
    ("body", "progress"),
    [(b'{"steps": 5}', 5), (b'{"steps": 5, "grammar_seconds": 2}', 7), (b'{"steps": 5, "grammar_seconds": "2"}', 5)],
)
def test_a_line_that_compiles_a_grammar_computes(body: bytes, progress: int) -> None:
    """Else grammars that take long would have a line counted as dead that has nothing else to do."""
    assert Native().metrics(body).progress == progress


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (spec(), {}),
        (spec("bfloat16"), {"dtype": "bfloat16"}),
        (spec("fp32"), {"dtype": "float32"}),
        (spec("int8"), {"weights": "int8"}),
        (spec("plain"), {"weights": "plain"}),
        (spec("fp8"), {"weights": "fp8"}),
        (spec("int4", dtype="bfloat16"), {"weights": "int4:32", "dtype": "bfloat16"}),
        (spec("int4:128", head_weights="int8"), {"weights": "int4:128", "head-weights": "int8"}),
        (spec(weights="int8"), {"weights": "int8"}),
        (spec("int8", weights="int8"), {"weights": "int8"}),
    ],
)
def test_precision_is_a_dtype_or_a_form_of_weights(line: LineSpec, flags: dict[str, str]) -> None:
    assert told(line) == flags


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (spec("int7"), "precision 'int7' is not a form of weights"),
        (spec("int8", weights="int4"), "precision: int8 and options.weights int4 contradict"),
        (spec("float32", dtype="bfloat16"), "precision: float32 and options.dtype bfloat16 contradict"),
        (spec(dtype="bfloat16", weights="float32"), "weights says float32 and dtype bfloat16"),
        (spec(head_weights="int4:5"), "head_weights 'int4:5'"),
    ],
)
def test_what_the_engine_has_not_is_refused_before_it_starts(line: LineSpec, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Native().check(line)


def test_lines_of_other_forms_are_of_other_classes() -> None:
    """Their texts differ, so no stream may move between them."""
    lines = [spec(), spec("int8"), spec(weights="int8", head_weights="plain"), spec(head_weights="int8"), spec("int4")]
    assert len({weights_class(line) for line in lines}) == len(lines)
    assert weights_class(spec("int8", threads=1)) == weights_class(spec("int8", threads=2))


def test_a_worker_on_a_chip_in_software_makes_a_simulated_line() -> None:
    line = Line("a", spec())
    assert not line.simulated
    line.facts = Native().facts({"data": [{"simulated": True}]})
    assert line.simulated


def test_a_line_lacks_what_its_worker_says_that_it_lacks() -> None:
    facts = Native().facts({"data": [{"max_model_len": 64, "lacks": ["grammar", "patterns"]}]})
    line = Line("a", spec())
    assert {"grammar", "patterns"} <= line.features
    line.facts = facts
    assert line.features == Native.features - {"grammar", "patterns"} and line.context == 64
    line.declare(LineSpec(name="a", model="m", engine="native", weights="/m", lacks=frozenset({"exact"})), {})
    assert line.features == Native.features - {"exact"}
