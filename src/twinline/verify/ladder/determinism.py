"""Level 7: the same again: bit for bit? Run to run, in other batches, in another order. Grades, not demands.

Owns the comparisons. Two runs of the same step that differ are a limit of the chip (`limit`): what it serves cannot be
replayed. That a row's bits depend on its company is common, and a note.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinline.engine.devices.device import dtype_name
from twinline.verify.ladder import pace, prompts
from twinline.verify.ladder.attempt import Where, alive, attempt
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.calls import kept, tensors
from twinline.verify.ladder.finding import Finding
from twinline.verify.ladder.subject import Steps, Told, alone, decoded, subjects, together

TIMES = 6  # of a whole run
OP_TIMES = 12  # of one op: what differs one time in four is missed one time in thirty
COUNT, LENGTH = 4, 48


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "determinism.ops", lambda where: _ops(bench, where))
    yield from attempt(bench, "determinism.repeat", lambda where: _repeat(bench))
    yield from attempt(bench, "determinism.batch", lambda where: _beside(bench, "batch"))
    yield from attempt(bench, "determinism.order", lambda where: _beside(bench, "order"))


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but that any NaN equals any other."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _ops(bench: Bench, where: Where) -> Iterator[Finding]:
    """Each op of a prefill and a decode step, called again with the same arguments."""
    try:
        calls = kept(bench)
    except Exception as error:
        where.at = getattr(error, "at", where.at)
        raise
    rule, unsteady = "bit for bit, run to run", {}
    for one in calls:
        call = one.call
        alive(bench)
        where.is_(op=call.op, provider=call.provider, place=call.place)
        with torch.inference_mode():
            first = _results(one.again(), call.args)
            differ = sum(not all(map(equal, first, _results(one.again(), call.args))) for _ in range(OP_TIMES - 1))
        if differ and call.op not in unsteady:
            unsteady[call.op] = (call, one, differ)
    where.is_(op="", provider="", place="")
    for op, (call, one, differ) in unsteady.items():
        yield Finding(check="determinism.ops", verdict="limit", rule=rule, op=op, provider=call.provider,
                      shape=one.shape, dtype=dtype_name(subjects(bench).dtype),
                      text=f"{op} ({call.provider}), called {OP_TIMES} times with the same arguments, gave other bits "
                           f"{differ} times ({one.phase}, {call.place})",
                      figures={"times": OP_TIMES, "differ": differ})  # fmt: skip
    if not unsteady:
        yield Finding(check="determinism.ops", verdict="pass", rule=rule, figures={"times": OP_TIMES},
                      text=f"{len(calls)} calls of {len({c.call.op for c in calls})} ops gave the same bits "
                           f"{OP_TIMES} times")  # fmt: skip


def _results(out: object, args: tuple[object, ...]) -> list[Tensor]:
    return [t.cpu() for t in tensors(args[0] if out is None else out)]


def _sequences(bench: Bench) -> list[list[int]]:
    return prompts.sequences(bench, "determinism", COUNT, min(LENGTH, bench.spec.context))


def _steps(lengths: list[int]) -> Steps:
    """All prompts in one step, then ten decodes of each."""
    return decoded(lengths, [max(n - 10, 1) for n in lengths])


def _repeat(bench: Bench) -> Iterator[Finding]:
    sequences, chip = _sequences(bench), subjects(bench).chip
    lengths = [len(s) for s in sequences]
    first = chip.tell(sequences, _steps(lengths))
    differ, apart = 0, 0.0
    times = pace.some(bench, TIMES, 3)
    for _ in range(times - 1):
        again = chip.tell(sequences, _steps(lengths))
        off = _apart(first, again)
        differ, apart = differ + (off != 0), max(apart, off)
    text = (f"{times} runs of the same steps gave the same bits" if not differ else
            f"{differ} of {times - 1} repeats gave other bits, log-probabilities up to {apart:.1e} apart")  # fmt: skip
    yield Finding(check="determinism.repeat", verdict="limit" if differ else "pass", text=text,
                  rule="bit for bit, run to run",
                  figures={"times": times, "differ": differ, "apart": apart})  # fmt: skip


def _apart(a: list[Told], b: list[Told]) -> float:
    """The largest log-probability difference; 0 only where all logits are bit-equal."""
    if all(equal(x.logits_TV, y.logits_TV) for x, y in zip(a, b, strict=True)):
        return 0.0
    apart = max(float((x.logprobs_TV - y.logprobs_TV).abs().max()) for x, y in zip(a, b, strict=True))
    return max(apart, 1e-300) if apart == apart else float("inf")


def _beside(bench: Bench, name: str) -> Iterator[Finding]:
    """A sequence in a batch beside itself alone, or in a batch in another order: how many rows keep their bits."""
    sequences, chip = _sequences(bench), subjects(bench).chip
    lengths = [len(s) for s in sequences]
    first = chip.tell(sequences, together(lengths))
    if name == "batch":
        other, what = chip.tell(sequences, alone(lengths)), "alone or in a batch of 4"
    else:
        turned = chip.tell(sequences[::-1], together(lengths[::-1]))
        other, what = turned[::-1], "first or last in the batch"
    rows = sum(lengths)
    same = sum(int((x.logits_TV == y.logits_TV).all(-1).sum()) for x, y in zip(first, other, strict=True))
    apart = _apart(first, other)
    yield Finding(check=f"determinism.{name}", verdict="pass" if same == rows else "note",
                  rule="a grade, not a demand", figures={"rows": rows, "same": same, "apart": apart},
                  text=f"{same} of {rows} rows have the same bits {what}"
                       + (f"; log-probabilities up to {apart:.1e} apart" if apart else ""))  # fmt: skip
