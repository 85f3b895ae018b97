"""Level 1: every op of the model, by each provider that would serve it, in each dtype that the device has.

Owns the trying of providers in the device's order: one that fails is refused and the next is tried, until one is right.
The golden result is float64 (`golden.py`), the reference chip the CPU with the reference ops on the same inputs in the
same dtype (`rules.py` says when a result is right).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinline.engine.build import DTYPES
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.registry import OPS, Ops, StaticFacts, candidates
from twinline.facts.models import GroupedQuery, ModelSpec
from twinline.verify.ladder import golden as right
from twinline.verify.ladder.attempt import At, alive, begin, broken, host_at_work
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.case import Case, call, wide
from twinline.verify.ladder.cases import cases
from twinline.verify.ladder.finding import Figure, Finding
from twinline.verify.ladder.golden import GOLDEN, Array, Golden
from twinline.verify.ladder.rules import PRECISIONS, Judged, judge, limits

RULE = "bound on every element, ratio to the reference chip, no bias; moves to the bit; NaN and infinities in place"
SURE = 8.0  # roundings of float32 by which a router's choice must be clear to be held to


def climb(bench: Bench) -> Iterator[Finding]:
    for dtype in dtypes(bench):
        for op in used(bench):
            yield from _op(bench, op, dtype)


def dtypes(bench: Bench) -> list[str]:
    """Those on the list that the device computes in, the model's first."""
    own = bench.spec.dtype if bench.trial.dtype == "auto" else bench.trial.dtype
    names = sorted(DTYPES, key=lambda name: name != own)
    return [name for name in names if bench.supports(DTYPES[name])]


def model_of(spec: ModelSpec) -> Transformer:
    """The model's shape, without weights."""
    return Transformer(Ops(("reference",), StaticFacts("cpu", torch.float32)), spec)


def used(bench: Bench) -> list[str]:
    """The ops that the model calls, in the registry's order."""
    uses = model_of(bench.spec).uses()
    return [op for op in OPS if op in uses]


def _facts(bench: Bench, device_type: str, dtype: str) -> StaticFacts:
    a = bench.spec.attention
    return StaticFacts(device_type, DTYPES[dtype], a.head_size if isinstance(a, GroupedQuery) else 0)


def _op(bench: Bench, op: str, dtype: str) -> Iterator[Finding]:
    """One finding per provider that was tried, and one more where none is right. Where one provider alone is asked for
    it is tried whatever stands before it, and nothing is said of the others."""
    exam, tried, last = Exam(bench, op, dtype), 0, ""
    every = f"ops.{op}.any.{dtype}"
    asked = bench.trial.wants(every)
    facts = _facts(bench, bench.device.torch_device.type, dtype)
    for found, reason in candidates(op, bench.device.providers, facts):
        check = f"ops.{op}.{found.provider}.{dtype}"
        if reason is not None:
            continue
        if (op, found.provider, dtype) in bench.refused:  # by an earlier child of this climb
            tried, last = tried + 1, bench.refused[op, found.provider, dtype]
            continue
        if bench.trial.made(check):
            return  # it was right, or it would be among what was refused
        if not (asked or bench.trial.wants(check)):
            continue
        begin(bench, check)
        finding = exam.sit(check, found.provider, found.function)
        yield finding
        tried += 1
        if finding.verdict == "pass":
            return
        last = finding.text
        bench.refused[op, found.provider, dtype] = finding.text
    if tried and asked:
        yield Finding(check=every, verdict="fail", op=op, dtype=dtype, rule="some provider is right",
                      text=f"no provider of {op} is right in {dtype}; the last: {last}")  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a case should give: golden results, and the reference chip's, as float64."""

    golden: tuple[Golden, ...]
    reference: tuple[Array, ...]


class Exam:
    """The cases of one op in one dtype, with their answers, made once for all providers."""

    def __init__(self, bench: Bench, op: str, dtype: str):
        self.bench, self.op, self.dtype = bench, op, dtype
        self.precision = PRECISIONS[dtype]

    @cached_property
    def cases(self) -> list[Case]:
        return cases(self.bench, self.op, DTYPES[self.dtype])

    @cached_property
    def reference(self) -> Any:
        return getattr(Ops(("reference",), StaticFacts("cpu", DTYPES[self.dtype])), self.op)

    @cached_property
    def answers(self) -> list[Answer]:
        with np.errstate(all="ignore"), torch.inference_mode(), host_at_work(self.bench):
            return [self._answer(case) for case in self.cases]

    def _answer(self, case: Case) -> Answer:
        near = call(self.reference, case, torch.device("cpu"))
        if self.op == "route":
            return Answer((), tuple(map(_numpy, near)))
        gold = GOLDEN[self.op](*wide(case.args), bits=self.precision.bits)
        return Answer(gold, tuple(map(_numpy, near)))

    def sit(self, check: str, provider: str, function: Any) -> Finding:
        """The finding about one provider: the worst of all cases, or the first that fails."""
        started = time.perf_counter()
        worst: tuple[Case, Judged] | None = None
        answers = self.answers
        for case, answer in zip(self.cases, answers, strict=True):
            alive(self.bench)
            try:
                with torch.inference_mode():
                    out = call(function, case, self.bench.device.torch_device)
            except Exception as error:
                found = broken(check, error, At(op=self.op, provider=provider, place=case.shape), rule="it runs")
                return _with(found, dtype=self.dtype, shape=case.shape, seconds=time.perf_counter() - started)
            with np.errstate(all="ignore"):
                judged = self._judge(case, answer, out)
            if worst is None or judged.broken or judged.excess > worst[1].excess:
                worst = case, judged
            if judged.broken:
                break
        assert worst is not None
        case, judged = worst
        text = f"{judged.text} ({case.shape})"
        figures: dict[str, Figure] = {"cases": len(self.cases), "excess": min(judged.excess, 1e30), **judged.figures}
        return Finding(check=check, verdict="fail" if judged.broken else "pass", text=text, rule=judged.broken or RULE,
                       op=self.op, provider=provider, dtype=self.dtype, shape=case.shape, figures=figures,
                       seconds=time.perf_counter() - started)  # fmt: skip

    def _judge(self, case: Case, answer: Answer, out: list[Tensor]) -> Judged:
        if self.op == "route":
            return _judge_route(case, answer, out)
        if len(out) != len(answer.golden):
            return Judged("shape", f"{len(out)} results where {len(answer.golden)} are right", np.inf, {})
        wrong_type = [str(o.dtype) for o in out if o.dtype != DTYPES[self.dtype]]
        if wrong_type:
            return Judged("dtype", f"the result is {wrong_type[0]}", np.inf, {})
        found = [judge(_numpy(o), g, r, self.precision, limits(self.op))
                 for o, g, r in zip(out, answer.golden, answer.reference, strict=True)]  # fmt: skip
        return max(found, key=lambda one: (bool(one.broken), one.excess))


def _judge_route(case: Case, answer: Answer, out: list[Tensor]) -> Judged:
    """The sets of experts where the choice is clear, valid ones elsewhere, and the weights of what was chosen."""
    x, gate, bias, e = wide(case.args)
    want = right.routing(x, gate, bias, e)
    chosen, weights = out[0].numpy(), _numpy(out[1])
    if chosen.shape != (len(x), e.per_token) or weights.shape != chosen.shape:
        return Judged("shape", f"shape {chosen.shape} where {(len(x), e.per_token)} is right", np.inf, {})
    ordered = np.sort(chosen, -1)
    if ((chosen < 0) | (chosen >= e.count)).any() or (ordered[:, 1:] == ordered[:, :-1]).any():
        return Judged("experts", "a row names an expert twice, or one that is not there", np.inf, {})
    doubt = 2.0**-24 * (SURE + 4 * np.sqrt(x.shape[-1]) * want.size_NE.max(-1))
    sure = want.margin_N > doubt
    differ = (ordered != np.sort(want.chosen(), -1)).any(-1) & sure
    figures: dict[str, Figure] = {"rows": len(x), "sure_rows": int(sure.sum()), "wrong_rows": int(differ.sum())}
    if differ.any():
        row = int(differ.argmax())
        text = (f"{int(differ.sum())} of {int(sure.sum())} rows whose choice is clear go to other experts; row {row}: "
                f"{sorted(chosen[row].tolist())} where {sorted(want.chosen()[row].tolist())} is right")  # fmt: skip
        return Judged("experts", text, np.inf, figures)
    gold = want.weights(chosen)
    near = want.weights(answer.reference[0].astype(np.int64))
    reference = gold.value + (answer.reference[1] - near.value)  # its errors, where it may have chosen others in a tie
    found = judge(weights, gold, reference, PRECISIONS["float32"], limits("route"))
    return Judged(found.broken, found.text, found.excess, figures | found.figures)


def _numpy(one: Tensor) -> Array:
    return one.double().numpy()


def _with(finding: Finding, **changes: Any) -> Finding:
    fields = {name: getattr(finding, name) for name in finding.__struct_fields__}
    return Finding(**(fields | changes))
