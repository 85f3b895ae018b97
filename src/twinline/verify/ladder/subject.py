"""A model on a device, asked what it thinks of given sequences: teacher forcing, in any division into steps.

Owns the models on trial (the chip's, the reference chip's, the golden one), made once per bench, and the arms: ways to
divide the same tokens into steps, which must all give the same. Judges nothing.

Shape suffixes: T tokens of a sequence, V vocabulary, M expert layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine.build import DTYPES, ops_for
from twinline.engine.devices.device import Device, dtype_name
from twinline.engine.models.loader import load
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.engine.request import Request, SamplingParams
from twinline.engine.runner import Runner
from twinline.engine.scheduler import Work
from twinline.verify.ladder.attempt import NotReady, alive, first_line, host_at_work
from twinline.verify.ladder.bench import Bench, once
from twinline.verify.ladder.double import Double, route_along
from twinline.verify.ladder.taps import tapped

Span = tuple[int, int, int]  # sequence, first position, one past the last
Steps = list[list[Span]]


@dataclass(frozen=True)
class Told:
    """What a model said of one sequence: its logits in float64 on the host, and the experts that it chose."""

    logits_TV: Tensor
    chosen_MTK: Tensor | None

    @cached_property
    def logprobs_TV(self) -> Tensor:
        return self.logits_TV.log_softmax(-1)


class Subject:
    """A loaded model with the device it is on. `double`: the golden one, see `double.py`."""

    def __init__(self, bench: Bench, device: Device, ops: Ops, context: int, *, double: bool = False):
        self.bench, self.device, self.double = bench, device, double
        folder = Path(bench.trial.model)
        with self._signs():
            self.model: Transformer = load(folder, bench.spec, ops, device.torch_device, context).eval()
        self.dtype = ops.facts.dtype
        self.providers = {c.op: c.provider for c in ops.choices}
        self.page_size = bench.device.page_size  # of all three alike, so that their pages are the same

    def runner(self, places: int) -> Runner:
        """A cache of its own, of at least that many places."""
        pages = -(-places // self.page_size)
        return Runner(self.model, self.device, pages=pages, page_size=self.page_size, dtype=self.dtype)

    @contextmanager
    def width(self) -> Iterator[None]:
        """What the model runs under."""
        with self._signs(), Double() if self.double else nullcontext():
            yield

    def _signs(self) -> AbstractContextManager[None]:
        """Of life, while what works is not the chip."""
        return host_at_work(self.bench) if self.device is self.bench.host else nullcontext()

    def tell(
        self,
        sequences: Sequence[Sequence[int]],
        steps: Steps,
        *,
        shared: int = 0,
        follow: Sequence[Told] | None = None,
        watch: Callable[[int], None] = lambda step: None,
    ) -> list[Told]:
        """What the model says of each sequence, computed in `steps`.

        `shared`: so many pages at the beginning belong to all (a prefix hit): only the first sequence's steps write
        them. `follow`: the experts are those of another run. `watch` is told after each step.
        """
        requests, places = self.requests(sequences, shared)
        runner = self.runner(places)
        if self.bench.spec.experts is not None:
            runner.graphs.why_not = "its router is listened to"  # a step that is replayed says nothing
        logits = [torch.zeros(len(s), self.bench.spec.vocab, dtype=torch.float64) for s in sequences]
        chosen: list[dict[int, list[tuple[int, Tensor]]]] = [{} for _ in sequences]
        for number, spans in enumerate(steps):
            alive(self.bench)
            work = tuple(Work(requests[i], start, end - start) for i, start, end in spans)
            batch = batches.build(work, self.page_size, self.device.torch_device, runner.spare_page)
            heard: list[Tensor] = []
            with self.width(), self._routed(batch, heard, requests, follow):
                hidden = runner.hidden(batch)
                said = runner.logits(hidden, range(len(hidden))).cpu().double()
            for w, last in zip(batch.work, batch.ends, strict=True):
                i, rows = int(w.request.id), slice(last + 1 - w.count, last + 1)
                logits[i][w.start : w.end] = said[rows, : self.bench.spec.vocab]
                for layer, choice in enumerate(heard):
                    chosen[i].setdefault(layer, []).append((w.start, choice[rows]))
            del batch, hidden, w  # so that what is allocated when `watch` looks does not grow with the context
            watch(number)
        start = shared * self.page_size
        for i in range(1, len(sequences) if shared else 0):  # what all share was computed once
            logits[i][:start] = logits[0][:start]
            for layer, parts in chosen[0].items():
                chosen[i].setdefault(layer, []).extend((at, c[: start - at]) for at, c in parts if at < start)
        return [Told(one, _joined(parts)) for one, parts in zip(logits, chosen, strict=True)]

    def requests(self, sequences: Sequence[Sequence[int]], shared: int = 0) -> tuple[list[Request], int]:
        """A request with pages for each sequence, pages scattered as in service, and the places that they take."""
        page, made, count = self.page_size, [], shared
        for number, ids in enumerate(sequences):
            request = Request(str(number), list(ids), SamplingParams())
            own = -(-len(ids) // page) - shared
            request.pages = [*range(shared), *range(count, count + max(own, 0))]
            count += max(own, 0)
            made.append(request)
        order = self.bench.generator("pages", count).permutation(count).tolist()
        for request in made:
            request.pages = [order[p] for p in request.pages]
        return made, count * page

    def _routed(
        self, batch: batches.Batch, heard: list[Tensor], requests: list[Request], follow: Sequence[Told] | None
    ) -> Any:
        spec = self.bench.spec
        if spec.experts is None:
            return nullcontext()

        def hear(op: str, function: Any, args: tuple[Any, ...]) -> Any:
            x_NX, gate_EX, _, experts = args
            if follow is None:
                chosen_NK, weights_NK = function(*args)
                heard.append(chosen_NK.cpu())
                return chosen_NK, weights_NK
            parts = []
            for w in batch.work:
                theirs = follow[int(w.request.id)].chosen_MTK
                assert theirs is not None
                parts.append(theirs[len(heard), w.start : w.end])
            heard.append(torch.cat(parts))
            return heard[-1], route_along(x_NX, gate_EX, experts, heard[-1])

        return tapped(self.model, frozenset(("route",)), hear)


def _joined(parts: dict[int, list[tuple[int, Tensor]]]) -> Tensor | None:
    if not parts:
        return None
    return torch.stack([torch.cat([c for _, c in sorted(one, key=lambda p: p[0])]) for _, one in sorted(parts.items())])


class Subjects:
    """The three models of a bench. One that cannot be made says why where it is first needed, and then no more."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self._made: dict[str, Subject] = {}
        self._why_not: dict[str, str] = {}

    @property
    def dtype(self) -> torch.dtype:
        wanted = self.bench.trial.dtype
        return DTYPES[self.bench.spec.dtype if wanted == "auto" else wanted]

    @property
    def context(self) -> int:
        return self.bench.spec.context

    @property
    def chip(self) -> Subject:
        """The chip's own, with the ops that it would serve with."""
        return self._once("chip", lambda: Subject(
            self.bench, self.bench.device, chip_ops(self.bench, self.dtype), self.context))  # fmt: skip

    @property
    def reference(self) -> Subject:
        """The reference ops on the CPU, in the chip's dtype."""
        return self._once("reference", lambda: Subject(
            self.bench, self.bench.host, host_ops(self.bench, self.dtype), self.context))  # fmt: skip

    @property
    def golden(self) -> Subject:
        """The reference ops on the CPU in float64."""
        return self._once("golden", lambda: Subject(
            self.bench, self.bench.host, host_ops(self.bench, torch.float64), self.context, double=True))  # fmt: skip

    def _once(self, name: str, make: Callable[[], Subject]) -> Subject:
        if name in self._why_not:
            raise NotReady(f"the model cannot be loaded there: {self._why_not[name]}")
        if name not in self._made:
            try:
                self._made[name] = make()
            except NotReady:
                raise
            except Exception as error:
                self._why_not[name] = f"{type(error).__name__}: {first_line(error)}"
                raise
        return self._made[name]


@once
def subjects(bench: Bench) -> Subjects:
    return Subjects(bench)


def chip_ops(bench: Bench, dtype: torch.dtype) -> Ops:
    """The ops that the chip would serve with: without what an earlier level refused."""
    return ops_for(bench.device, dtype, bench.spec, bench.refusals(dtype))


def host_ops(bench: Bench, dtype: torch.dtype) -> Ops:
    """The reference ops. NotReady where the host has no room for the model in that width."""
    needed = sum(p.numel() for p in _shape(bench).parameters()) * dtype.itemsize
    free = bench.host.free_memory()
    if free is not None and needed > free:
        name = dtype_name(dtype)
        raise NotReady(
            f"the model takes {needed / 2**30:.1f} GiB in {name} on the host, and {free / 2**30:.1f} GiB are free: "
            f"try one with fewer layers"
        )
    return Ops(("reference",), StaticFacts("cpu", dtype))


def _shape(bench: Bench) -> Transformer:
    return Transformer(Ops(("reference",), StaticFacts("cpu", torch.float32)), bench.spec)


# The arms.


def alone(lengths: Sequence[int]) -> Steps:
    """Each sequence by itself, whole."""
    return [[(i, 0, n)] for i, n in enumerate(lengths)]


def together(lengths: Sequence[int]) -> Steps:
    """All in one step."""
    return [[(i, 0, n) for i, n in enumerate(lengths)]]


def chunked(lengths: Sequence[int], size: int) -> Steps:
    """Each by itself, in chunks of `size`."""
    return [[(i, at, min(at + size, n))] for i, n in enumerate(lengths) for at in range(0, n, size)]


def decoded(lengths: Sequence[int], first: Sequence[int]) -> Steps:
    """`first[i]` tokens of each as a prompt, then one token of each per step; a shorter one ends earlier."""
    steps: Steps = [[(i, 0, f) for i, f in enumerate(first)]]
    for more in range(max(n - f for n, f in zip(lengths, first, strict=True))):
        steps.append([(i, f + more, f + more + 1) for i, (n, f) in enumerate(zip(lengths, first, strict=True))
                      if f + more < n])  # fmt: skip
    return steps


def staggered(lengths: Sequence[int], size: int) -> Steps:
    """As in service: while one's chunk is computed, those before it decode their last tokens."""
    left: list[Iterator[Span]] = []
    for i, n in enumerate(lengths):
        head = max(n - size, 1)
        spans = [(i, at, min(at + size, head)) for at in range(0, head, size)]
        spans += [(i, at, at + 1) for at in range(head, n)]
        left.append(iter(spans))
    steps: Steps = []
    started = 0
    while left:
        started += 1
        step = [span for one in left[:started] if (span := next(one, None)) is not None]
        if not step and started > len(left):
            break
        if step:
            steps.append(step)
    return steps
