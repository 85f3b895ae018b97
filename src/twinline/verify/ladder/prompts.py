"""Token sequences to try a model on: arithmetic, Chinese and code, of any length, from the trial's seed alone.

Owns the texts. A model without a tokenizer that can be read gets random token ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from twinline.verify import problems
from twinline.verify.ladder.bench import Bench

KINDS = ("arithmetic", "chinese", "code")


def _problem(rng: random.Random, lang: str) -> str:
    while True:
        problem = problems.draw(rng, rng.choice(tuple(problems.KINDS)), held_out=False)
        if problem.lang == lang:
            return f"{problem.question}\n{problem.thought}\n{problem.answer}\n"


def _code(rng: random.Random) -> str:
    name, other = rng.sample(("total", "count", "index", "value", "left", "right", "best", "row"), 2)
    a, b = rng.randrange(1000), rng.randrange(2, 64)
    return rng.choice(
        (
            f"def {name}_of({other}: list[int]) -> int:\n    return sum(x * {b} for x in {other} if x > {a})\n\n",
            f"for {name} in range({a}, {a + b}):\n    if {name} % {b} == 0:\n        print({name}, end=', ')\n",
            f'{{"{name}": {a}, "{other}": [{b}, {a % b}, null], "ok": true}}\n',
            f"while (({name} >> {b % 7}) != {a}) {{ {name} ^= {other}[{b}]; }}\n",
        )
    )


TEXTS: dict[str, Callable[[random.Random], str]] = {
    "arithmetic": lambda rng: _problem(rng, "en"),
    "chinese": lambda rng: _problem(rng, "zh"),
    "code": _code,
}


def sequences(bench: Bench, name: str, count: int, length: int) -> list[list[int]]:
    """`count` sequences of exactly `length` token ids, the kinds of text in turn. `name` keeps users' draws apart."""
    draw = bench.generator(name, count, length)
    tokenizer = tokenizer_of(Path(bench.trial.model))
    vocab = bench.spec.vocab
    if tokenizer is None or length < 4:
        return [_ids(draw, vocab, length) for _ in range(count)]
    found = []
    for i in range(count):
        rng = random.Random(int(draw.integers(2**62)))
        ids: list[int] = []
        while len(ids) < length:
            ids += tokenizer.encode(TEXTS[KINDS[i % len(KINDS)]](rng), add_special_tokens=False).ids
        found.append([min(one, vocab - 1) for one in ids[:length]])
    return found


def tokenizer_of(directory: Path) -> Tokenizer | None:
    file = directory / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if file.exists() else None


def _ids(draw: np.random.Generator, vocab: int, length: int) -> list[int]:
    return [int(one) for one in draw.integers(vocab, size=length)]
