"""The distinct op calls of a prefill and of a decode step on the chip, kept with their arguments, to be made again.

Owns the keeping. The levels that repeat ops (determinism, speed) share one record per bench.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinline.engine.ops.plan import Plan
from twinline.verify.ladder import prompts
from twinline.verify.ladder.attempt import Where, alive
from twinline.verify.ladder.bench import Bench, once
from twinline.verify.ladder.subject import Subject, subjects
from twinline.verify.ladder.taps import Call, placed, tapped
from twinline.verify.ladder.trace import lay_out

DECODES, CONTEXT, CHUNK = 8, 64, 128


@dataclass(frozen=True)
class Kept:
    """A call that can be made again. `phase` is `prefill` (a chunk of 128) or `decode` (8 sequences, context 64);
    `rows` is how many tokens it served; `times` how often a step makes a call of this kind and shape."""

    call: Call
    phase: str
    rows: int
    times: int

    def again(self) -> Any:
        return self.call.function(*self.call.args)

    @property
    def shape(self) -> str:
        return "x".join(str(n) for a in self.call.args[:1] if isinstance(a, Tensor) for n in a.shape)


@once
def kept(bench: Bench) -> list[Kept]:
    """Raises what the chip raises, with `at`, the place."""
    subject, where = subjects(bench).chip, Where()
    context = min(CONTEXT, bench.spec.context - 1)
    chunk = min(CHUNK, bench.spec.context)
    ids = prompts.sequences(bench, "calls", DECODES, context + 1)
    long = prompts.sequences(bench, "chunk", 1, chunk)
    try:
        found = list(_recorded(subject, long, [[(0, 0, chunk)]], "prefill", where))
        fill = [(i, 0, context) for i in range(DECODES)]
        step = [(i, context, context + 1) for i in range(DECODES)]
        return found + list(_recorded(subject, ids, [fill, step], "decode", where))
    except Exception as error:
        error.at = where.at  # type: ignore[attr-defined]
        raise


def _recorded(
    subject: Subject, ids: list[list[int]], steps: list[list[tuple[int, int, int]]], phase: str, where: Where
) -> Iterator[Kept]:
    """The calls of the last step, one of each op and shape."""
    requests, places = subject.requests(ids)
    runner = subject.runner(places)
    found: dict[tuple[Any, ...], Call] = {}
    counts: dict[tuple[Any, ...], int] = {}
    for spans in steps:
        last = spans is steps[-1]
        with placed(subject.model) as stack:

            def hear(op: str, function: Any, args: tuple[Any, ...], stack: list[str] = stack, last: bool = last) -> Any:
                alive(subject.bench)
                where.is_(op=op, provider=subject.providers[op], place=stack[-1])
                if last:
                    key = (op, *(tuple(a.shape) for a in args if isinstance(a, Tensor)), _weights(op, args))
                    counts[key] = counts.get(key, 0) + 1
                    if key not in found:
                        found[key] = Call(op, subject.providers[op], stack[-1], args, None, function)
                return function(*args)

            with tapped(subject.model, subject.model.uses(), hear), torch.inference_mode():
                batch = lay_out(subject, requests, spans, runner.spare_page)
                x = subject.model(batch.ids_N, batch.positions_N, batch.plan, runner.cache)
                subject.model.logits(x)
    rows = len(batch.ids_N)
    return (Kept(call, phase, rows, counts[key]) for key, call in found.items())


def _weights(op: str, args: tuple[Any, ...]) -> Any:
    """Packed weights differ by their sizes, where these can be seen."""
    return tuple(t.shape for t in tensors(args[1])[:1]) if op in ("linear", "experts") else None


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value, nested ones too."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for one in value for t in tensors(one)]
    if isinstance(value, Plan):
        return [value.slots_N]
    return []
