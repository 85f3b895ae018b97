"""Every op of the model where it works: called on the chip with the model's own values, judged by itself.

Owns the comparison in place: the golden and the reference model are led along the chip's run, each of their ops given
what the chip's op was given, so that an error stays with the op that made it. Also finds where whole hidden states
first part. Knows no level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine.request import Request
from twinline.engine.scheduler import Work
from twinline.verify.ladder.attempt import Where, alive
from twinline.verify.ladder.double import margins
from twinline.verify.ladder.subject import Span, Steps, Subject
from twinline.verify.ladder.taps import OWNS_WEIGHTS, Call, placed, tapped

# An op in place may err so many times more than the reference op in the same dtype from the same values, or by two
# roundings of the dtype and `FLOOR` of float32, in units of its largest value: sums of a few hundred terms in another
# order, and for attention sharp softmaxes of large scores (measured over 100 seeds on CPUs: at most 17 and 26).
RATIO = 4.0
FLOOR = {"mla_prefill": 96.0, "mla_decode": 96.0, "attention_prefill": 96.0, "attention_decode": 96.0}
FLOOR_ELSE = 48.0
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SURE = 8.0  # a choice of experts must be the golden one where its margin is this many roundings of float32


@dataclass(frozen=True)
class Verdict:
    """One call in place. `error` and `allowed` in units of the largest golden value; `wrong_rows`: of a router."""

    call: Call
    error: float
    reference_error: float
    allowed: float
    where: str
    wrong_rows: int = 0

    @property
    def sound(self) -> bool:
        return self.error <= self.allowed and not self.wrong_rows  # a NaN is not sound


@dataclass(frozen=True)
class Recorded:
    """A run of the model on the chip: its calls with copies on the host, step by step."""

    sequences: list[list[int]]
    steps: Steps
    calls: list[list[Call]]


def record(subject: Subject, sequences: list[list[int]], steps: Steps, where: Where) -> Recorded:
    """Runs `steps`; the model is called directly, so that no recorded graph hides its ops."""
    requests, places = subject.requests(sequences)
    runner = subject.runner(places)
    calls: list[list[Call]] = []
    for spans in steps:
        heard: list[Call] = []
        with placed(subject.model) as stack:

            def hear(op: str, function: Any, args: tuple[Any, ...], stack: list[str] = stack,
                     heard: list[Call] = heard) -> Any:  # fmt: skip
                alive(subject.bench)
                where.is_(op=op, provider=subject.providers[op], place=stack[-1])
                given = tuple(_to_host(a) for a in args)
                out = function(*args)
                left = _to_host(args[0]) if op == "kv_write" else _to_host(out)
                heard.append(Call(op, subject.providers[op], stack[-1], given, left, function))
                return out

            with tapped(subject.model, subject.model.uses(), hear), torch.inference_mode(), subject.width():
                batch = lay_out(subject, requests, spans, runner.spare_page)
                x = subject.model(batch.ids_N, batch.positions_N, batch.plan, runner.cache)
                subject.model.logits(x)
        calls.append(heard)
    where.is_(op="", provider="", place="")
    return Recorded(sequences, steps, calls)


def lay_out(subject: Subject, requests: list[Request], spans: list[Span], spare_page: int) -> batches.Batch:
    """A step of a run that calls the model by itself."""
    work = tuple(Work(requests[i], start, end - start) for i, start, end in spans)
    return batches.build(work, subject.page_size, subject.device.torch_device, spare_page)


def _to_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value):
        return tuple(_to_host(v) for v in value)
    return value


def judge(recorded: Recorded, golden: Subject, reference: Subject) -> Iterator[Verdict]:
    """Each call in the order of execution, beside golden and reference given the same."""
    right = _led(golden, recorded)
    near = _led(reference, recorded)
    for calls, rights, nears in zip(recorded.calls, right, near, strict=True):
        for call, gold, ref in zip(calls, rights, nears, strict=True):
            yield _compare(call, gold, ref, reference.dtype)


def _led(subject: Subject, recorded: Recorded) -> list[list[Any]]:
    """What each op of `subject` gives for what the chip's op was given."""
    found: list[list[Any]] = []
    requests, places = subject.requests(recorded.sequences)
    runner = subject.runner(places)
    for spans, calls in zip(recorded.steps, recorded.calls, strict=True):
        results: list[Any] = []

        def hear(op: str, function: Any, args: tuple[Any, ...], results: list[Any] = results,
                 calls: list[Call] = calls) -> Any:  # fmt: skip
            alive(subject.bench)
            call = calls[len(results)]
            if call.op != op:
                raise AssertionError(f"call {len(results)} is {call.op} on the chip and {op} on the host")
            given = [
                own if (i == 1 and op in OWNS_WEIGHTS) or not isinstance(theirs, Tensor) else _as(theirs, own)
                for i, (own, theirs) in enumerate(zip(args, call.args, strict=True))
            ]
            out = function(*given)
            results.append(given[0] if op == "kv_write" else out)
            # The run goes on with the chip's values; in shape and dtype it is the host's own.
            return _like(call.out, out) if op != "kv_write" else None

        with tapped(subject.model, subject.model.uses(), hear), torch.inference_mode(), subject.width():
            batch = lay_out(subject, requests, spans, runner.spare_page)
            subject.model.logits(subject.model(batch.ids_N, batch.positions_N, batch.plan, runner.cache))
        found.append(results)
    return found


def _as(theirs: Tensor, own: Any) -> Tensor:
    """The chip's value in the dtype in which this model computes."""
    return theirs.to(own.dtype) if theirs.is_floating_point() else theirs.clone()


def _like(theirs: Any, own: Any) -> Any:
    if isinstance(own, tuple):
        return tuple(_like(t, o) for t, o in zip(theirs, own, strict=True))
    return theirs.to(own.dtype) if theirs.shape == own.shape else own


def _compare(call: Call, gold: Any, ref: Any, dtype: torch.dtype) -> Verdict:
    if call.op == "route":
        return _compare_route(call, gold, ref)
    error, allowed, reference_error, where = 0.0, 0.0, 0.0, ""
    outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
    golds = [gold] if isinstance(gold, Tensor) else list(gold)
    refs = [ref] if isinstance(ref, Tensor) else list(ref)
    for out, g, r in zip(outs, golds, refs, strict=True):
        one = _distance(out, g, r, dtype, FLOOR.get(call.op, FLOOR_ELSE))
        if not one[0] <= one[2] or not error > 0 or one[0] / max(one[2], 1e-300) > error / max(allowed, 1e-300):
            error, reference_error, allowed, where = one
            if not error <= allowed:
                break
    return Verdict(call, error, reference_error, allowed, where)


def _distance(
    out: Tensor, gold: Tensor, ref: Tensor, dtype: torch.dtype, floor: float
) -> tuple[float, float, float, str]:
    if out.shape != gold.shape:
        return float("inf"), 0.0, 0.0, f"shape {tuple(out.shape)} where {tuple(gold.shape)} is right"
    if not out.numel():
        return 0.0, 0.0, 0.0, ""
    g = gold.double()
    size = float(g.abs().max().clamp_min(1e-30))
    off = (out.double() - g).abs()
    worst = off.flatten().argmax() if torch.isfinite(off).all() else (~torch.isfinite(off)).flatten().int().argmax()
    at = torch.unravel_index(worst, out.shape)
    mean, ref_off = float(off.mean()) / size, (ref.double() - g).abs()
    allowed = max(RATIO * float(ref_off.max()) / size, 2 * ROUNDING.get(dtype, 2.0**-24) + floor * 2.0**-24)
    where = f"element {tuple(int(i) for i in at)} of {tuple(out.shape)}, mean {mean:.1e}"
    return float(off.flatten()[worst]) / size, float(ref_off.max()) / size, allowed, where


def _compare_route(call: Call, gold: Any, ref: Any) -> Verdict:
    """Sets of experts, where the choice is sure; and each chosen expert's weight."""
    x, gate, bias, experts = call.args
    sure = margins(x, gate, bias, experts) > SURE * 2.0**-24
    dense = [torch.zeros(len(x), experts.count, dtype=torch.float64).scatter_(1, c.long(), w.double())
             for c, w in (call.out, gold, ref)]  # fmt: skip
    out, g, r = dense
    wrong = int((((out != 0) != (g != 0)).any(-1) & sure).sum())
    same = ((out != 0) == (g != 0)).all(-1)
    size = float(g.abs().max().clamp_min(1e-30))
    off, ref_off = (out - g)[same].abs(), (r - g)[same].abs()
    error = float(off.max()) / size if off.numel() else 0.0
    reference_error = float(ref_off.max()) / size if ref_off.numel() and bool(((r != 0) == (g != 0)).all()) else 0.0
    allowed = max(RATIO * reference_error, FLOOR_ELSE * 2.0**-24)
    if not torch.isfinite(out).all():
        error = float("nan")
    return Verdict(call, error, reference_error, allowed, f"{wrong} of {int(sure.sum())} sure rows", wrong)


def parting(recorded: Recorded, golden: Subject, reference: Subject) -> Call | None:
    """The first call after which the residual stream is further from the golden run than rounding explains: three
    times the reference's distance there, by the root of the mean square."""
    right = record(golden, recorded.sequences, recorded.steps, Where())
    near = record(reference, recorded.sequences, recorded.steps, Where())
    for calls, rights, nears in zip(recorded.calls, right.calls, near.calls, strict=True):
        for call, gold, ref in zip(calls, rights, nears, strict=True):
            if call.op != "add_rms_norm":
                continue
            g = gold.out[1].double()
            size = g.pow(2).mean().sqrt()
            off, ref_off = ((x.out[1].double() - g).pow(2).mean().sqrt() / size for x in (call, ref))
            if not off <= 3 * max(float(ref_off), FLOOR_ELSE * 2.0**-24):
                return call
    return None
