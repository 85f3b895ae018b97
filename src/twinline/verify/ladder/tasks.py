"""Level 6: the model's own tasks, answered by the chip and by the reference chip, and the answers compared in pairs.

Owns the pairing and its statistics. Only `tiny-r1` has tasks of its own here; for another model the level is skipped.

Non-inferiority (ladder level 6): b problems only the reference solves, c only the chip; shown where
`(b - c)/n + 1.645 sqrt(b + c)/n <= 1 point`. A few dozen problems cannot show that once one answer differs, so that a
chip fails only where b against c is beyond chance (an exact sign test at 0.1%), or where it chose a token that the
reference thinks clearly worse than its own. Between the two the finding is a note that says how many problems it takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from twinline.engine.request import Request, SamplingParams
from twinline.verify.ladder import pace, serving
from twinline.verify.ladder.attempt import NotReady, attempt
from twinline.verify.ladder.bench import Bench, once
from twinline.verify.ladder.finding import Finding
from twinline.verify.ladder.prompts import tokenizer_of
from twinline.verify.ladder.subject import Subject, alone, subjects
from twinline.verify.problems import Problem, examination

COUNT = 28
MOST_TOKENS = 200
RUNNING = 14
PLACES = 1600  # fewer than all that run together come to: some wait, some are preempted
POINT, Z = 0.01, 1.645
CHANCE = 0.001
LENGTHS = 0.10
CLOSE = 0.01  # nats between two tokens of the reference that rounding may swap, float32
CLOSE_16 = 0.5  # the same where the chip computes in 16 bits


@dataclass(frozen=True)
class Pair:
    problem: Problem
    prompt: list[int]
    chip: list[int]
    reference: list[int]
    chip_right: bool
    reference_right: bool


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "tasks.paired", lambda where: _paired(bench))
    yield from attempt(bench, "tasks.tokens", lambda where: _tokens(bench))
    yield from attempt(bench, "tasks.lengths", lambda where: _lengths(bench))


def is_tiny(model: Path) -> bool:
    return model.resolve().name == "tiny-r1"


@once
def pairs(bench: Bench) -> list[Pair]:
    directory = Path(bench.trial.model)
    tokenizer = tokenizer_of(directory)
    if not is_tiny(directory) or tokenizer is None:
        raise NotReady(f"{directory.name} has no tasks here; only tiny-r1 brings its own, with answers to check")
    problems = examination(pace.some(bench, COUNT, 7), bench.trial.seed)
    prompts = [_prompt(tokenizer, p) for p in problems]
    chip = _answers(subjects(bench).chip, prompts)
    reference = _answers(subjects(bench).reference, prompts)

    def right(problem: Problem, output: list[int]) -> bool:
        text = tokenizer.decode(output, skip_special_tokens=True)
        return problem.solved_by(text.rpartition("</think>")[2])

    return [Pair(p, ids, a, b, right(p, a), right(p, b)) for p, ids, a, b in zip(problems, prompts, chip, reference,
                                                                             strict=True)]  # fmt: skip


def _prompt(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """As the model's chat template renders one question."""
    text = f"<｜begin▁of▁sentence｜><｜User｜>{problem.question}<｜Assistant｜><think>\n"
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _answers(subject: Subject, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=MOST_TOKENS, stop_token_ids=frozenset((1,)))
    requests = [Request(str(i), list(ids), params) for i, ids in enumerate(prompts)]
    found = serving.answers(subject, requests, places=PLACES, max_running=RUNNING)
    return [found[r.id] for r in requests]


def least_count(discordant_share: float) -> int:
    """How many problems it takes to show non-inferiority within a point, if that share of answers differs evenly."""
    return math.ceil(Z**2 * discordant_share / POINT**2)


def sign_test(b: int, c: int) -> float:
    """The chance of at least `b` of `b + c` where either is as likely."""
    n = b + c
    return sum(math.comb(n, k) for k in range(b, n + 1)) / 2**n


def _paired(bench: Bench) -> Iterator[Finding]:
    found = pairs(bench)
    n = len(found)
    b = sum(p.reference_right and not p.chip_right for p in found)
    c = sum(p.chip_right and not p.reference_right for p in found)
    margin = (b - c) / n + Z * math.sqrt(b + c) / n
    worse = sign_test(b, c) < CHANCE if b > c else False
    shown = margin <= POINT
    text = (f"{sum(p.chip_right for p in found)} of {n} right, the reference {sum(p.reference_right for p in found)}; "
            f"{b} lost, {c} won")  # fmt: skip
    if shown:
        text += f"; {n} pairs would show a loss of {least_seen(n):.0%} of answers, no smaller one"
    elif not worse:
        text += f"; too few to say: non-inferior within a point takes about {least_count((b + c) / n):,} problems"
    yield Finding(check="tasks.paired", verdict="fail" if worse else "pass" if shown else "note", text=text,
                  rule="(b-c)/n + 1.645 sqrt(b+c)/n <= 1 point; worse beyond chance (0.1%) fails",
                  figures={"problems": n, "lost": b, "won": c, "margin": margin})  # fmt: skip


def least_seen(n: int) -> float:
    """The share of lost answers of which n problems show at least one, 19 times in 20."""
    return 1 - 0.05 ** (1 / n)


def _tokens(bench: Bench) -> Iterator[Finding]:
    """Where the texts first part, both tokens must be nearly equally likely to the reference."""
    found, three = pairs(bench), subjects(bench)
    parted = [(p, at) for p in found if (at := _first_difference(p.chip, p.reference)) is not None]
    close = CLOSE if three.dtype.itemsize == 4 else CLOSE_16
    gap, worst = 0.0, ""
    for pair, at in parted:
        ids = [*pair.prompt, *pair.reference[:at]]
        told = three.reference.tell([ids], alone([len(ids)]))[0].logprobs_TV[-1]
        chip = pair.chip[at] if at < len(pair.chip) else 1
        theirs = pair.reference[at] if at < len(pair.reference) else 1
        one = abs(float(told[theirs] - told[chip]))
        if not one <= gap:
            gap, worst = one, f"token {at} of {pair.problem.question!r:.60}"
    good = gap <= close
    text = f"{len(found) - len(parted)} of {len(found)} texts are the reference's to the token"
    if parted:
        text += f"; where they part, at most {gap:.2e} nats lie between the two tokens ({worst})"
    yield Finding(check="tasks.tokens", verdict="pass" if good else "fail", text=text,
                  rule=f"first differing tokens within {close:g} nats of each other by the reference",
                  figures={"texts": len(found), "parted": len(parted), "gap_nats": gap})  # fmt: skip


def _first_difference(a: list[int], b: list[int]) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _lengths(bench: Bench) -> Iterator[Finding]:
    """Repetition and early ends show as longer and shorter answers before they show as wrong ones."""
    found = pairs(bench)
    chip, reference = (sum(len(s) for s in side) for side in ([p.chip for p in found], [p.reference for p in found]))
    off = chip / max(reference, 1) - 1
    yield Finding(check="tasks.lengths", verdict="pass" if abs(off) <= LENGTHS else "fail",
                  rule="within 10% of the reference's",
                  text=f"{chip / len(found):.1f} tokens an answer, the reference {reference / len(found):.1f} "
                       f"({off:+.1%})",
                  figures={"tokens": chip, "reference_tokens": reference})  # fmt: skip
