"""A whole engine on the bench: scheduler, runner and sampler over a subject's model, stepped by hand or in its thread.

Owns the putting together. A small cache, so that requests wait, share prefixes and are preempted as in service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twinline.engine.loop import Engine
from twinline.engine.pages import PagePool
from twinline.engine.request import Output, Request
from twinline.engine.sampler import Sampler
from twinline.engine.scheduler import Scheduler
from twinline.verify.ladder.attempt import alive
from twinline.verify.ladder.subject import Subject


def engine(
    subject: Subject,
    deliver: Callable[[Sequence[Output]], None],
    *,
    places: int,
    max_running: int = 16,
    max_tokens_per_step: int = 128,
) -> Engine:
    """An engine that has not been started: call `step`, or `start` its thread."""
    pages = -(-places // subject.page_size)
    pool = PagePool(pages, subject.page_size)
    scheduler = Scheduler(
        pool,
        max_tokens_per_step=max_tokens_per_step,
        max_running=max_running,
        max_waiting=1024,
        max_model_len=min(subject.bench.spec.context, pages * subject.page_size + 1),
    )
    return Engine(subject.runner(places), pool, scheduler, Sampler(subject.bench.spec.vocab), deliver)


def answers(subject: Subject, requests: Sequence[Request], *, places: int, max_running: int) -> dict[str, list[int]]:
    """Every request's output, stepped to the end. RuntimeError with the engine's words where one ends in error."""
    errors: list[str] = []

    def deliver(outputs: Sequence[Output]) -> None:
        errors.extend(o.error for o in outputs if o.error)

    made = engine(subject, deliver, places=places, max_running=max_running)
    for request in requests:
        made.submit(request)
    while made.scheduler.has_work:
        made.step()
        alive(subject.bench)
        if errors:
            raise RuntimeError(errors[0])
    return {r.id: list(r.output) for r in requests}
