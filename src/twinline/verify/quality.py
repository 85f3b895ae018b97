"""A quality report: a variant of a model beside the one that it was made from, on texts and on tasks.

Owns the texts, the tasks and what is counted. `tiny-r1` alone has tasks with known answers here. The comparing is the
engine's (`engine/quant/quality.py`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from twinline.engine.quant.quality import Distance, compare
from twinline.engine.quant.vector_quality import VectorDistance, compare_vectors
from twinline.facts.models import read_spec
from twinline.facts.pooling import read_pooling
from twinline.verify.ladder.prompts import KINDS, TEXTS
from twinline.verify.ladder.tasks import is_tiny
from twinline.verify.problems import Problem, examination

LENGTH = 256  # tokens of a text
MOST_TOKENS = 256  # of an answer
SEED = 2026
USER, ASSISTANT, BEGIN, END = "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


@dataclass(frozen=True)
class Tasks:
    """Of `problems` that neither saw in training: right answers, and those that only one of the two solves."""

    problems: int
    source_right: int
    target_right: int
    lost: int
    won: int


@dataclass(frozen=True)
class Quality:
    """`texts`: what was read. `tasks` is None for a model that has none here. `distance` is a `VectorDistance` for a
    model that gives vectors."""

    texts: str
    distance: Distance | VectorDistance
    tasks: Tasks | None


def quality(source: Path, target: Path, texts: Path | None, tokens: int, problems: int) -> Quality:
    """Compares both on about `tokens` tokens of a file, a text to a line, or of texts that are made up (arithmetic,
    Chinese, code); and tiny-r1 on `problems` problems.

    Raises ValueError where a model cannot be loaded or nothing can be read, OSError for a file that is not there.
    """
    file = source / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{source} has no tokenizer.json: texts cannot be read without it")
    tokenizer = Tokenizer.from_file(str(file))
    length = min(LENGTH, read_spec(source).context - 1)
    tiny = is_tiny(source)
    chosen = examination(problems, SEED) if tiny else []
    if texts is not None:
        read, what = _of_file(tokenizer, texts, tokens, length), str(texts)
    elif tiny:
        read, what = _of_problems(tokenizer, tokens), "problems of tiny-r1 with their solutions"
    else:
        read, what = _made_up(tokenizer, tokens, length), "made-up texts: arithmetic, Chinese, code"
    if read_pooling(source) is not None:
        return Quality(what, compare_vectors(source, target, read), None)
    prompts = [_encoded(tokenizer, f"{BEGIN}{USER}{p.question}{ASSISTANT}<think>\n") for p in chosen]
    stops = frozenset(filter(None, (tokenizer.token_to_id(END),)))
    compared = compare(source, target, read, prompts, stops, MOST_TOKENS)
    tasks = _tasks(tokenizer, chosen, *compared.answers) if chosen else None
    return Quality(what, compared.distance, tasks)


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _of_file(tokenizer: Tokenizer, file: Path, tokens: int, length: int) -> list[list[int]]:
    found: list[list[int]] = []
    for line in file.read_text("utf-8").splitlines():
        ids = _encoded(tokenizer, line)[:length]
        if len(ids) > 1:
            found.append(ids)
        if sum(map(len, found)) >= tokens:
            break
    if not found:
        raise ValueError(f"{file} has no line of at least two tokens")
    return found


def _of_problems(tokenizer: Tokenizer, tokens: int) -> list[list[int]]:
    found: list[list[int]] = []
    for p in examination(tokens, SEED + 1):
        text = f"{BEGIN}{USER}{p.question}{ASSISTANT}<think>\n{p.thought}\n</think>\n\n{p.answer}{END}"
        found.append(_encoded(tokenizer, text))
        if sum(map(len, found)) >= tokens:
            break
    return found


def _made_up(tokenizer: Tokenizer, tokens: int, length: int) -> list[list[int]]:
    rng, found = random.Random(SEED), []
    for i in range(-(-tokens // length)):
        ids: list[int] = []
        while len(ids) < length:
            ids += _encoded(tokenizer, TEXTS[KINDS[i % len(KINDS)]](rng))
        found.append(ids[:length])
    return found


def _tasks(tokenizer: Tokenizer, problems: list[Problem], source: list[list[int]], target: list[list[int]]) -> Tasks:
    def right(problem: Problem, answer: list[int]) -> bool:
        text = tokenizer.decode(answer, skip_special_tokens=True)
        return problem.solved_by(text.rpartition("</think>")[2])

    a = [right(p, ids) for p, ids in zip(problems, source, strict=True)]
    b = [right(p, ids) for p, ids in zip(problems, target, strict=True)]
    pairs = list(zip(a, b, strict=True))
    return Tasks(len(problems), sum(a), sum(b), sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs))
