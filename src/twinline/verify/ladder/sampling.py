"""Level 3, the last step: the engine's own sampler on the chip, from the same logits as on the CPU.

Owns the checks `model.sampler.*`. A seeded draw depends on logits, seed and position alone, so the chip must choose the
CPU's token wherever no near tie leaves it to the last bit of an exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from twinline.engine.request import Request, SamplingParams
from twinline.engine.sampler import BadLogits, Sampler
from twinline.verify.ladder.attempt import Where, attempt
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding

ROWS = 96
NEAR_TIES = 1  # of ROWS draws: two Gumbel variates within a few roundings of each other
LOGPROB = 2.0**-18  # of a log-probability in float32: an exponential, a sum over the vocabulary, a logarithm

PARAMS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0, max_tokens=64),
    "drawn": SamplingParams(temperature=1.0, max_tokens=64),
    "top_k": SamplingParams(temperature=0.8, top_k=20, max_tokens=64),
    "top_p": SamplingParams(temperature=1.2, top_p=0.9, max_tokens=64),
    "min_p": SamplingParams(temperature=1.0, min_p=0.05, max_tokens=64),
    "penalties": SamplingParams(temperature=0.7, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3,
                                logit_bias=((5, 4.0), (7, -100.0)), min_tokens=8, stop_token_ids=frozenset((1, 2)),
                                max_tokens=64),
}  # fmt: skip


def climb(bench: Bench) -> Iterator[Finding]:
    for name in PARAMS:
        yield from attempt(bench, f"model.sampler.{name}", partial(_chosen, bench, name))
    yield from attempt(bench, "model.sampler.logprobs", partial(_logprobs, bench))
    yield from attempt(bench, "model.sampler.not_finite", partial(_not_finite, bench))


def logits(bench: Bench, name: str) -> Tensor:
    """Rows with a few likely tokens, ties at the top in every fourth, on the host."""
    draw = bench.generator("sampler", name)
    rows = torch.from_numpy(draw.standard_normal((ROWS, bench.spec.vocab))).float() * 3
    likely = torch.from_numpy(draw.integers(bench.spec.vocab, size=(ROWS, 4)))
    rows.scatter_(1, likely, rows.gather(1, likely) + 6)
    for row in range(0, ROWS, 4):
        first, second = sorted(likely[row, :2].tolist())
        rows[row, first] = rows[row, second] = rows[row].max() + 1
    return rows


def requests(bench: Bench, params: SamplingParams) -> list[Request]:
    draw = bench.generator("requests")
    made = []
    for i in range(ROWS):
        prompt, output = (draw.integers(bench.spec.vocab, size=n).tolist() for n in (5 + i % 7, i % 12))
        one = SamplingParams(**{f: getattr(params, f) for f in params.__slots__} | {"seed": int(draw.integers(2**31))})
        made.append(Request(str(i), prompt, one, output))
    return made


def _chosen(bench: Bench, name: str, where: Where) -> Iterator[Finding]:
    rows, params = logits(bench, name), PARAMS[name]
    here = Sampler(bench.spec.vocab).sample(rows.clone(), requests(bench, params)).tokens
    there = Sampler(bench.spec.vocab).sample(bench.to_device(rows), requests(bench, params)).tokens
    wrong = [i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]
    allowed = 0 if params.greedy else NEAR_TIES
    good = len(wrong) <= allowed
    text = f"{ROWS - len(wrong)} of {ROWS} tokens are the CPU's"
    if wrong:
        text += f"; row {wrong[0]} gave {there[wrong[0]]}, right is {here[wrong[0]]}"
    yield Finding(check=f"model.sampler.{name}", verdict="pass" if good else "fail", text=text,
                  rule=f"the CPU's tokens from the same logits, but for {allowed} near ties", dtype="float32",
                  figures={"wrong": len(wrong), "rows": ROWS})  # fmt: skip


def _logprobs(bench: Bench, where: Where) -> Iterator[Finding]:
    rows = logits(bench, "logprobs")
    params = SamplingParams(temperature=0, logprobs=8, max_tokens=64)
    there = Sampler(bench.spec.vocab).sample(bench.to_device(rows), requests(bench, params))
    right = rows.double().log_softmax(-1)
    worst, misplaced = 0.0, 0
    for i, entry in enumerate(there.logprobs):
        assert entry is not None
        told = [(entry.token, entry.logprob), *entry.top]
        worst = max([worst, *(abs(value - float(right[i, token])) / max(1.0, abs(value)) if value == value else math.inf
                              for token, value in told)])  # fmt: skip
        order = [token for token, _ in entry.top]
        _, ids = rows[i].sort(descending=True, stable=True)
        misplaced += order != ids[: len(order)].tolist() or len(order) != 8
    good = worst <= LOGPROB and not misplaced
    yield Finding(check="model.sampler.logprobs", verdict="pass" if good else "fail", dtype="float32",
                  text=f"log-probabilities off by at most {worst:.1e}, {misplaced} of {ROWS} lists in another order",
                  rule=f"within {LOGPROB:.1e} of float64, the same order",
                  figures={"error": worst, "misplaced": misplaced})  # fmt: skip


def _not_finite(bench: Bench, where: Where) -> Iterator[Finding]:
    """A NaN or an infinity in one row is that request's error, and nobody else's."""
    check, rule = "model.sampler.not_finite", "NaN and inf are told, by request"
    for what, value in (("NaN", math.nan), ("+inf", math.inf)):
        rows = logits(bench, "not_finite")[:4]
        rows[2, 11] = value
        asked = requests(bench, PARAMS["greedy"])[:4]
        try:
            Sampler(bench.spec.vocab).sample(bench.to_device(rows), asked)
        except BadLogits as error:
            if error.request_ids != ("2",):
                yield Finding(check=check, verdict="fail", rule=rule, dtype="float32",
                              text=f"{what} in request 2 was laid at {', '.join(error.request_ids)}")  # fmt: skip
                return
        else:
            yield Finding(check=check, verdict="fail", rule=rule, dtype="float32", op="max",
                          text=f"{what} in a row of logits went unseen: the maximum does not carry it")  # fmt: skip
            return
    yield Finding(check=check, verdict="pass", rule=rule, dtype="float32",
                  text="NaN and infinity in one row are that request's error alone")  # fmt: skip
