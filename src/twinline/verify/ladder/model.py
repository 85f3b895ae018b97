"""Level 3: the whole model, teacher-forced: log-probabilities, arms against each other, routing, sampling.

Owns the checks. What a distance may be is said in `closeness.py`, what an op may err in place in `trace.py`. Where a
check fails, the first layer at which the chip parts from the golden run is found and named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from twinline.engine.devices.device import dtype_name
from twinline.verify.ladder import pace, prompts, sampling, trace
from twinline.verify.ladder.attempt import Where, attempt
from twinline.verify.ladder.bench import Bench, once
from twinline.verify.ladder.closeness import distance, judge
from twinline.verify.ladder.finding import Finding
from twinline.verify.ladder.subject import (
    Steps,
    Told,
    alone,
    chunked,
    decoded,
    staggered,
    subjects,
    together,
)

LADDER = (1, 17, 128, 1024, 4096)  # tokens; as far as the model's context allows
LONGEST = 4096
COUNTS = {1: 26, 17: 24, 128: 12}  # 64 prompts with the two longest


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "model.load", lambda where: _load(bench))
    for length in lengths(bench):
        yield from attempt(bench, f"model.logprobs.{length}", partial(_logprobs, bench, length))
    for name in ARMS:
        yield from attempt(bench, f"model.arms.{name}", partial(_arm, bench, name))
    yield from attempt(bench, "model.trace", lambda where: _trace(bench, where))
    yield from attempt(bench, "model.router", lambda where: _router(bench, where), op="route")
    yield from sampling.climb(bench)


def lengths(bench: Bench) -> list[int]:
    context = min(bench.spec.context, LONGEST)
    return sorted({n for n in LADDER if n < context} | {context})


def _load(bench: Bench) -> Iterator[Finding]:
    chip = subjects(bench).chip
    used = chip.model.uses()
    serving = sorted({provider for op, provider in chip.providers.items() if op in used})
    by = {p: sum(provider == p for op, provider in chip.providers.items() if op in used) for p in serving}
    text = ", ".join(f"{count} ops by {provider}" for provider, count in by.items())
    text += f"; a decode step of 4 takes {pace.step_seconds(bench) * 1000:.0f} ms"
    if (share := pace.share(bench)) < 1:
        text += f", so that the long checks are cut to {share:.0%} of their length"
    yield Finding(check="model.load", verdict="pass", text=f"the weights are on the chip; {text}", rule="it loads",
                  dtype=dtype_name(chip.dtype))  # fmt: skip


# Log-probabilities over the length ladder.


@dataclass(frozen=True)
class Forced:
    """One set of sequences through the three models, each sequence whole and alone."""

    sequences: list[list[int]]
    chip: list[Told]
    golden: list[Told]
    reference: list[Told]
    reference_golden: list[Told]

    @property
    def lengths(self) -> list[int]:
        return [len(s) for s in self.sequences]


def golden_along(bench: Bench, sequences: list[list[int]], run: list[Told], own: list[Told]) -> list[Told]:
    """The golden run with `run`'s choice of experts; `own` is the golden run's own, which mostly is the same."""
    found, differ = list(own), [i for i, (r, g) in enumerate(zip(run, own, strict=True)) if not _same_experts(r, g)]
    if differ:
        some = [sequences[i] for i in differ]
        again = subjects(bench).golden.tell(some, alone([len(s) for s in some]), follow=[run[i] for i in differ])
        for i, told in zip(differ, again, strict=True):
            found[i] = told
    return found


def _same_experts(a: Told, b: Told) -> bool:
    if a.chosen_MTK is None or b.chosen_MTK is None:
        return True
    return torch.equal(a.chosen_MTK.sort(-1).values, b.chosen_MTK.sort(-1).values)


@once
def _on_host(bench: Bench, length: int, count: int) -> tuple[list[list[int]], list[Told], list[Told], list[Told]]:
    """Sequences, golden and reference runs, and the golden run along the reference's routing."""
    sequences = prompts.sequences(bench, "model", count, length)
    steps = alone([length] * count)
    golden = subjects(bench).golden.tell(sequences, steps)
    # A host adds up a product of one row in more parts than one of several, and so more exactly (1.6 to 2 times in
    # float32 with AVX2): the chip need not.
    reference = subjects(bench).reference.tell(sequences, together([1] * count) if length == 1 else steps)
    return sequences, golden, reference, golden_along(bench, sequences, reference, golden)


@once
def forced(bench: Bench, length: int) -> Forced:
    """Raises whatever the chip raises."""
    sequences, golden, reference, along = _on_host(bench, length, pace.some(bench, COUNTS.get(length, 2), 2))
    chip = subjects(bench).chip.tell(sequences, alone([length] * len(sequences)))
    return Forced(sequences, chip, golden_along(bench, sequences, chip, golden), reference, along)


def _logprobs(bench: Bench, length: int, where: Where) -> Iterator[Finding]:
    check = f"model.logprobs.{length}"
    run = forced(bench, length)
    judged = judge(distance(run.golden, run.chip), distance(run.reference_golden, run.reference),
                   subjects(bench).dtype)  # fmt: skip
    text = f"{len(run.sequences)} prompts of {length}, {judged.text}"
    if not judged.passed:
        bench.model_is_wrong = True
        text += f"; {first_parting(bench, run.sequences[:1], alone([length]))}"
    yield Finding(check=check, verdict="pass" if judged.passed else "fail", text=text, rule=judged.rule,
                  figures=judged.figures, dtype=dtype_name(subjects(bench).dtype))  # fmt: skip


# Arms: the same tokens in other steps.

ARM_LENGTH, ARM_COUNT = 96, 4
ARMS = ("decode", "prefix", "chunked", "batch", "staggered")
ARM_TITLES = {
    "decode": "token by token from the cache",
    "prefix": "on another's cached prefix",
    "chunked": "in chunks of 29",
    "batch": "four in one step",
    "staggered": "decodes beside chunks",
}


def arm_steps(name: str, lengths: list[int], page: int, decodes: int = 40) -> tuple[Steps, int]:
    """The steps of an arm, and how many pages at the beginning all share."""
    if name == "decode":
        return decoded(lengths, [n - decodes - 3 * i for i, n in enumerate(lengths)]), 0
    if name == "prefix":
        pages = (lengths[0] // 2) // page
        return [[(0, 0, lengths[0])], [(i, pages * page, n) for i, n in enumerate(lengths) if i]], pages
    if name == "chunked":
        return chunked(lengths, 29), 0
    if name == "staggered":
        return staggered(lengths, 23), 0
    return together(lengths), 0


def arm_sequences(bench: Bench, name: str) -> list[list[int]]:
    length = min(ARM_LENGTH, bench.spec.context)
    sequences = prompts.sequences(bench, "arms", ARM_COUNT, length)
    if name == "prefix":
        shared = (length // 2) // bench.device.page_size * bench.device.page_size
        sequences = [sequences[0][:shared] + s[shared:] for s in sequences]
    return sequences


def _arm(bench: Bench, name: str, where: Where) -> Iterator[Finding]:
    """An arm beside the golden run, and beside the chip's own run of each sequence whole and alone."""
    check, three = f"model.arms.{name}", subjects(bench)
    sequences = arm_sequences(bench, name)
    whole = [len(s) for s in sequences]
    steps, shared = arm_steps(name, whole, bench.device.page_size, pace.some(bench, 40, 12))
    chip = three.chip.tell(sequences, steps, shared=shared)
    golden = three.golden.tell(sequences, alone(whole))
    reference = three.reference.tell(sequences, alone(whole))
    seen = distance(golden_along(bench, sequences, chip, golden), chip)
    near = distance(golden_along(bench, sequences, reference, golden), reference)
    judged = judge(seen, near, three.dtype)
    text = f"{ARM_TITLES[name]}: {judged.text}"
    if not judged.passed:
        bench.model_is_wrong = True
        text += f"; {first_parting(bench, sequences, steps)}"
    yield Finding(check=check, verdict="pass" if judged.passed else "fail", text=text, rule=judged.rule,
                  figures=judged.figures, dtype=dtype_name(three.dtype))  # fmt: skip


# In place: every op with the model's own values.

TRACE_STEPS: Steps = [  # prompts, prompts beside decodes, decodes, a chunk on a past
    [(0, 0, 20), (1, 0, 17)],
    [(0, 20, 21), (1, 17, 18), (2, 0, 20)],
    [(0, 21, 22), (1, 18, 19), (2, 20, 21)],
    [(0, 22, 30), (1, 19, 20)],
]


@once
def traced(bench: Bench) -> list[trace.Verdict]:
    where = Where()
    try:
        recorded = trace.record(subjects(bench).chip, prompts.sequences(bench, "trace", 3, 30), TRACE_STEPS, where)
    except Exception as error:
        error.at = where.at  # type: ignore[attr-defined]
        raise
    return list(trace.judge(recorded, subjects(bench).golden, subjects(bench).reference))


def _verdicts(bench: Bench, where: Where) -> list[trace.Verdict]:
    try:
        return traced(bench)
    except Exception as error:
        where.at = getattr(error, "at", where.at)
        raise


def _trace(bench: Bench, where: Where) -> Iterator[Finding]:
    """One finding for each op that errs in place, its first call named; one in all if none does."""
    verdicts = _verdicts(bench, where)
    wrong: dict[str, list[trace.Verdict]] = {}
    for verdict in verdicts:
        if not verdict.sound:
            wrong.setdefault(verdict.call.op, []).append(verdict)
    rule = "in place: error <= 4x the reference op's from the same values, or some roundings of float32"
    for number, (op, found) in enumerate(wrong.items()):
        first = found[0]
        calls = sum(v.call.op == op for v in verdicts)
        text = (f"{op} ({first.call.provider}) errs in {len(found)} of its {calls} calls, "
                f"{'the first op to err' if number == 0 else 'first'} in {first.call.layer} ({first.call.place}): "
                f"{first.error:.1e} of its largest value, allowed {first.allowed:.1e}; {first.where}")  # fmt: skip
        yield Finding(check="model.trace", verdict="fail", text=text, rule=rule, op=op, provider=first.call.provider,
                      dtype=dtype_name(subjects(bench).dtype), figures=_figures(first))  # fmt: skip
    if not wrong:
        closest = max(verdicts, key=lambda v: v.error / max(v.allowed, 1e-300))
        text = (f"{len(verdicts)} calls of {len({v.call.op for v in verdicts})} ops in place are sound; the closest "
                f"to its limit is {closest.call.op} in {closest.call.layer}, "
                f"{closest.error / max(closest.allowed, 1e-300):.0%} of it")  # fmt: skip
        yield Finding(check="model.trace", verdict="pass", text=text, rule=rule, figures=_figures(closest),
                      dtype=dtype_name(subjects(bench).dtype))  # fmt: skip


def _figures(verdict: trace.Verdict) -> dict[str, Any]:
    return {"error": verdict.error, "reference_error": verdict.reference_error, "allowed": verdict.allowed}


def _router(bench: Bench, where: Where) -> Iterator[Finding]:
    """The sets of experts, given the chip's own values, where the choice is sure; and end to end, as a figure."""
    rule = "sets equal where the margin is over 8u"
    if bench.spec.experts is None:
        yield Finding(check="model.router", verdict="skipped", text="the model has no experts")
        return
    run = forced(bench, 128 if 128 in lengths(bench) else lengths(bench)[-1])
    differ = total = 0
    for chip, golden in zip(run.chip, subjects(bench).golden.tell(run.sequences, alone(run.lengths)), strict=True):
        assert chip.chosen_MTK is not None and golden.chosen_MTK is not None
        same = (chip.chosen_MTK.sort(-1).values == golden.chosen_MTK.sort(-1).values).all(-1)
        differ, total = differ + int((~same).sum()), total + same.numel()
    routes = [v for v in _verdicts(bench, where) if v.call.op == "route"]
    wrong = sum(v.wrong_rows for v in routes)
    rows = sum(len(v.call.args[0]) for v in routes)
    bad = wrong > 0 or any(not v.sound for v in routes)
    text = (f"{wrong} of {rows} choices wrong where they are sure; end to end {differ} of {total} differ from the "
            f"golden run's")  # fmt: skip
    yield Finding(check="model.router", verdict="fail" if bad else "pass", text=text, rule=rule, op="route",
                  provider=subjects(bench).chip.providers["route"],
                  figures={"wrong": wrong, "rows": rows, "differ_share": differ / max(total, 1)})  # fmt: skip


def first_parting(bench: Bench, sequences: list[list[int]], steps: Steps) -> str:
    """Where the chip first parts from the golden run in these steps: the op that errs in place, else where the hidden
    states are first too far apart."""
    three = subjects(bench)
    if (known := next((v for v in traced(bench) if not v.sound), None)) is not None:
        return _named(known)
    recorded = trace.record(three.chip, sequences, steps, Where())
    for verdict in trace.judge(recorded, three.golden, three.reference):
        if not verdict.sound:
            return _named(verdict)
    parted = trace.parting(recorded, three.golden, three.reference)
    if parted is not None:
        return (f"first divergent: {parted.layer}, after {parted.op} ({parted.provider}) in {parted.place}, though no "
                f"op errs by itself")  # fmt: skip
    return "op by op nothing diverges: the error is no single op's, or did not come again"


def _named(verdict: trace.Verdict) -> str:
    call = verdict.call
    return (
        f"first divergent: {call.layer}, {call.op} ({call.provider}) in {call.place}, "
        f"{verdict.error:.1e} of its largest value from the same input"
    )
