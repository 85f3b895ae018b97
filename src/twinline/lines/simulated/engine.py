"""The simulated engine: the native scheduler and its pages, on a chip of arithmetic, with a teacher for a model.

Owns steps and when they end. Knows no HTTP; the clock is given to it, so it can be driven by any. Queueing, chunked
prefill, prefix hits and preemption are the native engine's own code, and so are the refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twinline.engine.pages import PagePool
from twinline.engine.request import FinishReason, Output, Request
from twinline.engine.scheduler import Scheduler, Step
from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.teacher import Answer, Teacher

PAGE = 16  # tokens
CATCH_UP_SECONDS = 1.0  # a process that was stopped longer lost the time: it does not make up for it in a burst


@dataclass
class Counters:
    """What the engine has done since it started. Only grows."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)


class Engine:
    """`deliver` gets the outputs of each step. Times are seconds of one monotonic clock.

    `slowed` makes every step so many times longer.
    """

    def __init__(self, chip: Chip, teacher: Teacher, deliver: Callable[[Sequence[Output]], None]) -> None:
        """Raises ValueError for a chip whose sizes do not fit together."""
        self.chip = chip
        self.pool = PagePool(max(1, chip.kv_tokens // PAGE), PAGE)
        self.scheduler = Scheduler(
            self.pool,
            max_tokens_per_step=chip.step_tokens,
            max_running=chip.slots,
            max_waiting=chip.max_waiting,
            max_model_len=chip.max_model_len,
        )
        self.counters = Counters()
        self.slowed = 1.0
        self.due: float | None = None  # when the step under way ends
        self._step = Step(())
        self._teacher = teacher
        self._deliver = deliver
        self._answers: dict[str, Answer] = {}

    def submit(self, request: Request, now: float) -> None:
        """Raises ValueError, IdInUse, TooLong or QueueFull, as the native scheduler does."""
        self.scheduler.submit(request)
        params = request.params
        seed = 0 if params.greedy else params.seed
        self._answers[request.id] = self._teacher.answer(request.prompt, seed, request.output)
        self.counters.prompt_tokens += len(request.prompt)
        if self.due is None:
            self._begin(now)

    def abort(self, request_id: str) -> None:
        if self.scheduler.abort(request_id) is not None:
            self._forget(request_id, "abort")

    def advance(self, now: float) -> None:
        """Ends every step whose time has come; `due` says when the next one ends."""
        if self.due is not None and now - self.due > CATCH_UP_SECONDS:
            self.due = now
        while self.due is not None and self.due <= now:
            at = self.due
            self._end(at)
            self._begin(at)

    def _begin(self, at: float) -> None:
        late = self.scheduler.expired(at)
        for request in late:
            self._forget(request.id, "deadline")
        if late:
            self._deliver([Output(r.id, finish="deadline", cached_tokens=r.cached_tokens) for r in late])
        self._step = self.scheduler.schedule()
        if not self._step.work:
            self.due = None
            return
        decoded = sum(work.count == 1 and work.samples for work in self._step.work)
        self.due = at + self.slowed * self.chip.step_seconds(self._step.tokens - decoded, decoded)

    def _end(self, at: float) -> None:
        sampling = [work.request for work in self._step.work if work.request in self.scheduler and work.samples]
        self.scheduler.commit(self._step)
        self.counters.steps += 1
        self.counters.generated_tokens += len(sampling)
        outputs = [self._advance(request, at) for request in sampling]
        if outputs:
            self._deliver(outputs)

    def _advance(self, request: Request, at: float) -> Output:
        """One more token of a request, and its end if this is the last."""
        params = request.params
        answer = self._answers[request.id]
        may_end = len(request.output) >= params.min_tokens
        token = answer.next(params.stop_token_ids if may_end else ())
        answer.take(token)
        request.output.append(token)
        if request.first_token_at is None:
            request.first_token_at = at
        finish: FinishReason | None = None
        if may_end and token in params.stop_token_ids:
            finish = "stop"
        elif len(request.output) >= params.max_tokens or request.known >= self.scheduler.max_model_len:
            finish = "length"
        if finish is not None:
            self.scheduler.finish(request)
            self._forget(request.id, finish)
        stopped = token if finish == "stop" else None
        return Output(request.id, (token,), (), None, finish, stopped, request.cached_tokens)

    def _forget(self, request_id: str, finish: str) -> None:
        del self._answers[request_id]
        self.counters.finished[finish] = self.counters.finished.get(finish, 0) + 1
